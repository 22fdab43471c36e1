"""On small fake stages: what is gone on from, set aside and put back."""

from typing import Any

import attrs
import pytest

from bitnet_cli import run_folder
from bitnet_cli.errors import UserError
from bitnet_cli.pipeline.former_results import before_path, set_aside
from bitnet_cli.stages.stage import Context
from stage_bench import PIPELINE, TRAIN, Bench, Collect, Train, collect, failing, train


def test_only_discard_paid_deletes_what_was_paid_for(bench: Bench) -> None:
    bench.external = True
    bench.run()
    seen: list[bool] = []

    def look(context: Context) -> dict[str, Any]:
        seen.append(all((context.folder / "raw" / name).exists() for name in ("journal", "shard_000.txt")))
        return collect(context)

    bench.replace("collect", look)
    bench.run(start="collect")
    bench.change(collect=Collect(top_k=5))
    bench.run()
    assert seen == [True, True]
    assert bench.run(discard_paid=True) == 0
    assert seen == [True, True, False]
    assert "--discard-paid: deleted" in bench.output


def stop_half_way(context: Context) -> dict[str, Any]:
    run_folder.write_text(context.folder / "checkpoints" / "steps.txt", "half")
    raise KeyboardInterrupt


def test_a_stopped_stage_resumes_with_the_same_settings_only(bench: Bench) -> None:
    bench.replace("train", stop_half_way)
    assert bench.run() == 130
    bench.replace("train", train)
    bench.run()
    assert bench.line("train") == "train     resuming: was stopped before it finished"
    assert (bench.folder / "checkpoints" / "steps.txt").read_text() == "half then 200 on k=20"

    bench.replace("train", stop_half_way)
    bench.change(train=Train(steps=5))
    bench.run()
    bench.replace("train", train)
    bench.change(train=Train(steps=6))
    bench.run()
    assert bench.line("train") == "train     again: was stopped before it finished"
    assert (bench.folder / "checkpoints" / "steps.txt").read_text() == "6 on k=20"


def test_from_starts_a_stopped_stage_over(bench: Bench) -> None:
    bench.replace("train", stop_half_way)
    bench.run()
    bench.replace("train", train)
    bench.run(start="train")
    assert (bench.folder / "checkpoints" / "steps.txt").read_text() == "200 on k=20"


@pytest.mark.slow
@pytest.mark.parametrize("error", [UserError("no layer 99"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("forced", [False, True])
def test_a_failed_stage_leaves_what_was_there_before(bench: Bench, error: BaseException, forced: bool) -> None:
    bench.run()
    bench.change(collect=Collect(top_k=3), train=Train(steps=5))
    bench.run()
    record = run_folder.done_path(bench.folder, "train").read_text()

    def fail(context: Context) -> dict[str, Any]:
        run_folder.write_text(context.folder / "logs" / "metrics.txt", "a first row, no checkpoint")
        raise error

    bench.replace("train", fail)
    if not forced:
        bench.change(train=Train(steps=6))
    assert bench.run(start="train" if forced else None) != 0
    assert (bench.folder / "checkpoints" / "steps.txt").read_text() == "5 on k=3"
    assert (bench.folder / "logs" / "metrics.txt").read_text() == "loss"
    assert run_folder.done_path(bench.folder, "train").read_text() == record
    bench.pipeline = PIPELINE
    bench.change(train=Train(steps=5))
    assert bench.run() == 0
    assert bench.ran() == []
    bench.change(train=Train(steps=6))
    assert bench.run() == 0
    assert (bench.folder / "checkpoints" / "steps.txt").read_text() == "6 on k=3"
    assert not before_path(bench.folder, "train").exists()


def grown(bench: Bench) -> None:
    bench.pipeline = tuple(
        attrs.evolve(stage, may_grow=("train.steps",), keeps_former=True) if stage.name == "train" else stage
        for stage in bench.pipeline
    )


def test_more_of_what_may_grow_goes_on(bench: Bench) -> None:
    grown(bench)
    bench.run()
    bench.change(train=Train(steps=300))
    assert bench.run() == 0
    assert bench.line("train") == "train     resuming: train.steps 200 → 300"
    assert (bench.folder / "checkpoints" / "steps.txt").read_text() == "200 on k=20 then 300 on k=20"
    assert not (bench.folder / "set_aside").exists()

    def stop(context: Context) -> dict[str, Any]:
        raise KeyboardInterrupt

    bench.replace("train", stop)
    bench.change(train=Train(steps=350))
    assert bench.run() == 130
    bench.replace("train", train)
    bench.change(train=Train(steps=400))
    assert bench.run() == 0
    assert (bench.folder / "checkpoints" / "steps.txt").read_text().endswith("then 300 on k=20 then 400 on k=20")


def test_what_other_settings_have_made_is_set_aside_and_named(bench: Bench) -> None:
    grown(bench)
    bench.run()
    done = run_folder.read_done(bench.folder, "train")
    assert done is not None
    bench.change(train=Train(steps=100))
    assert bench.run() == 0
    aside = bench.folder / "set_aside" / done.fingerprint[:8]
    assert f"what other settings had made is set aside in {aside}" in bench.output
    assert (aside / "checkpoints" / "steps.txt").read_text() == "200 on k=20"
    assert run_folder.read_done(aside, "train") == done
    assert (bench.folder / "checkpoints" / "steps.txt").read_text() == "100 on k=20"
    bench.change(collect=Collect(top_k=3))
    assert bench.run() == 0
    assert len(list((bench.folder / "set_aside").iterdir())) == 2
    assert bench.run(start="train") == 0, "the same once more"
    assert len(list((bench.folder / "set_aside").iterdir())) == 2


def test_an_attempt_that_gives_way_is_set_aside_too(bench: Bench) -> None:
    grown(bench)
    bench.run()

    bench.replace("train", stop_half_way)
    bench.change(train=Train(steps=5))
    assert bench.run() == 130
    bench.replace("train", train)
    bench.change(train=Train(steps=4))
    assert bench.run() == 0
    kept = {path.read_text() for path in (bench.folder / "set_aside").glob("*/checkpoints/steps.txt")}
    assert kept == {"half", "200 on k=20"}


def test_a_former_training_waits_beside_a_stopped_one(bench: Bench) -> None:
    bench.run()

    bench.replace("train", stop_half_way)
    bench.change(train=Train(steps=5))
    assert bench.run() == 130
    assert "what it had made before is kept in" in bench.output
    bench.replace("train", train)
    bench.change(train=Train(steps=200))
    assert bench.run() == 0
    assert "train     skipped: what was done before with the same settings is put back" in bench.output
    assert bench.ran() == []
    assert (bench.folder / "checkpoints" / "steps.txt").read_text() == "200 on k=20"


def test_a_kill_while_results_are_moved_loses_nothing(bench: Bench) -> None:
    bench.run()
    set_aside(bench.folder, "train", TRAIN.writes)
    assert not (bench.folder / "checkpoints" / "steps.txt").exists()
    assert bench.run() == 0
    assert bench.ran() == []
    assert (bench.folder / "checkpoints" / "steps.txt").read_text() == "200 on k=20"


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["{", "", '{"format": 1, "stage": "train"}'])
def test_an_unreadable_record_does_not_clear_what_can_be_gone_on_from(bench: Bench, damage: str) -> None:
    bench.run()
    run_folder.done_path(bench.folder, "train").write_text(damage)
    assert bench.run() == 0
    assert bench.line("train") == "train     running: its record stages/train/done.json can't be read"
    assert (bench.folder / "checkpoints" / "steps.txt").read_text() == "200 on k=20 then 200 on k=20"


def test_a_stage_that_starts_over_does_not_say_that_it_resumes(bench: Bench) -> None:
    bench.replace("report", failing(KeyboardInterrupt()))
    bench.run()
    bench.pipeline = PIPELINE
    bench.run()
    assert bench.line("report") == "report    again: was stopped before it finished"
