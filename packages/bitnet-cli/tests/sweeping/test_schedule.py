"""What is alike is done once, by the first; the others wait for it, and no longer."""

import attrs

from bitnet_cli.manifest.stage_needs import StageFacts
from bitnet_cli.stages.stage import Stage
from bitnet_cli.sweeping.schedule import Keyed, Schedule, Task, stage_keys
from bitnet_cli.sweeping.variants import Variant


def keyed(name: str, **keys: str) -> Keyed:
    return Keyed(Variant(name, (), name), {"storage": name, **keys})


def take_all(schedule: Schedule) -> list[Task]:
    tasks = []
    while (task := schedule.next_task()) is not None:
        tasks.append(task)
    return tasks


def shown(tasks: list[Task]) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    return [(task.variant.name, task.stages, task.shared) for task in tasks]


def test_the_first_does_what_is_alike_and_then_all_go_on_together() -> None:
    schedule = Schedule([keyed(name, collect="c", project="p", train=name) for name in "ab"])
    (first,) = take_all(schedule)
    assert shown([first]) == [("a", ("storage", "collect", "project"), ())]
    schedule.ended(first, None)
    assert shown(take_all(schedule)) == [
        ("a", ("train",), ()),
        ("b", ("storage", "collect", "project", "train"), ("collect", "project")),
    ]
    assert take_all(schedule) == []


def test_what_was_done_before_is_there_for_others() -> None:
    done = attrs.evolve(keyed("b", collect="c", train="b"), is_done=True)
    schedule = Schedule([done, keyed("x", collect="c", train="x")])
    (task,) = take_all(schedule)
    assert shown([task]) == [("x", ("storage", "collect", "train"), ("collect",))]


def test_what_differs_begins_at_once() -> None:
    schedule = Schedule([keyed(name, collect=name, train=name) for name in "ab"])
    assert shown(take_all(schedule)) == [
        ("a", ("storage", "collect", "train"), ()),
        ("b", ("storage", "collect", "train"), ()),
    ]


def test_stages_that_do_not_build_on_what_differs_are_shared_all_the_same() -> None:
    schedule = Schedule([keyed(name, baseline=name, collect="c", train=name) for name in "ab"])
    (first,) = take_all(schedule)
    assert first.stages == ("storage", "baseline", "collect")
    schedule.ended(first, None)
    assert ("b", ("storage", "baseline", "collect", "train"), ("collect",)) in shown(take_all(schedule))


def test_a_failure_ends_those_that_would_fail_alike_and_no_other() -> None:
    schedule = Schedule(
        [keyed("a", collect="c", train="a"), keyed("b", collect="c", train="b"), keyed("x", collect="x", train="x")]
    )
    first, other = take_all(schedule)
    schedule.ended(first, "no network")
    assert take_all(schedule) == []
    assert schedule.failed == {"a": "no network", "b": "it shares collect with a, which failed"}
    schedule.ended(other, None)
    assert take_all(schedule) == []
    assert other.stages == ("storage", "collect", "train")


def test_a_failure_after_what_is_alike_ends_nobody_else() -> None:
    schedule = Schedule([keyed(name, collect="c", train=name) for name in "abc"])
    (first,) = take_all(schedule)
    schedule.ended(first, None)
    tasks = take_all(schedule)
    schedule.ended(tasks[0], "diverged")
    assert [task.variant.name for task in tasks[1:]] == ["b", "c"]
    assert schedule.failed == {"a": "diverged"}


def test_what_a_lost_worker_had_is_handed_out_again() -> None:
    schedule = Schedule([keyed("a", train="a")])
    (task,) = take_all(schedule)
    assert take_all(schedule) == []
    schedule.put_back(task)
    assert take_all(schedule) == [task]


def test_a_key_is_of_the_settings_and_of_what_is_read() -> None:
    @attrs.frozen
    class Section:
        value: int = 1

    @attrs.frozen
    class Settings:
        first: Section = Section()
        second: Section = Section()

    def stage(name: str, reads: tuple[str, ...]) -> Stage:
        return Stage(
            facts=StageFacts(name=name, needs=(name,)), run=lambda context: {}, writes=(f"{name}.x",), reads=reads
        )

    pipeline = (stage("first", ()), stage("second", ("first.x",)))

    def keys(first: int, second: int) -> dict[str, str]:
        return stage_keys(Settings(Section(first), Section(second)), pipeline, pipeline)

    one = keys(1, 1)
    assert keys(1, 2)["first"] == one["first"]
    assert keys(1, 2)["second"] != one["second"]
    assert keys(2, 1)["second"] != one["second"]
