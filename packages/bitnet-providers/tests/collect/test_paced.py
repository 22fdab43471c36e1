"""The collector and a teacher that fails: retries, refusals, budgets, outages, shards; nothing lost."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pyarrow.parquet as pq
import pytest

from bitnet_providers.collect.collect import collect, prepare
from bitnet_providers.collect.estimate import needs_consent
from bitnet_providers.collect.plan_requests import of_shard, plan_collection
from bitnet_providers.config import BudgetConfig, CollectConfig, PriceConfig, PricesConfig
from bitnet_providers.contract import ProviderError, RequestRefusedError, RetryableError
from bitnet_providers.raw.no_answer import FILTERED

Teachers = Callable[..., Any]
Outcome = Exception | float | None


@pytest.fixture
def config(tmp_path: Path) -> CollectConfig:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"question {n}" for n in range(40)))
    return CollectConfig(prompts=prompts, top_k=2, concurrency=4, retry_wait_s=0.001, max_new_tokens=8)


def scripted(teacher: Any, outcome: Callable[[str, int], Outcome]) -> Any:
    """Each call first gets ``outcome(last message, call of it from 1)``: raised, waited for, or (None) nothing."""
    tries: Counter[str] = Counter()
    answer = teacher.generate

    async def generate(request: Any) -> Any:
        said = request.messages[-1]["content"]
        tries[said] += 1
        found = outcome(said, tries[said])
        if isinstance(found, Exception):
            raise found
        if found is not None:
            await asyncio.sleep(found)
        return await answer(request)

    teacher.generate, teacher.tries = generate, tries
    return teacher


def run(teacher: Any, config: CollectConfig, folder: Path, **more: Any) -> dict[str, Any]:
    return asyncio.run(collect(teacher, config, folder, "counting", 0, **more))


def ids(folder: Path) -> list[str]:
    tables = [pq.read_table(path) for path in sorted(folder.glob("shard_*.parquet"))]
    return [source for table in tables for source in table["source_id"].to_pylist()]


ALL = [str(n) for n in range(1, 41)]


def test_what_may_pass_is_asked_again_and_counted(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers
) -> None:
    def outcome(said: str, number: int) -> Outcome:
        if number > 1:
            return None
        return {
            "question 3": RetryableError("429", retry_after_s=0.01, overloaded=True),
            "question 5": RetryableError("cut", possibly_paid=True),
            "question 7": RetryableError("503"),
        }.get(said)

    teacher = scripted(counting_teacher(), outcome)
    summary = run(teacher, config, tmp_path / "raw")
    assert ids(tmp_path / "raw") == ALL
    assert (summary["retries"], summary["rate_limited"]) == (3, 1)
    assert summary["spent"]["requests"] == 43
    assert summary["spent"]["possibly_paid_requests"] == 1
    assert not any(summary["missing"].values())


def test_a_refused_request_is_left_out_told_and_not_asked_again(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers
) -> None:
    def outcome(said: str, number: int) -> Outcome:
        return RequestRefusedError("400: not this one") if said == "question 4" else None

    summary = run(scripted(counting_teacher(), outcome), config, tmp_path / "raw")
    assert ids(tmp_path / "raw") == [name for name in ALL if name != "5"]
    assert summary["refused"] == [{"id": "5", "sample": 0, "reason": "400: not this one"}]
    assert "1 refused by the teacher (--retry-failed asks again)" in summary["headline"]

    again = scripted(counting_teacher(), outcome)
    summary = run(again, config, tmp_path / "raw")
    assert again.tries == {}
    assert summary["refused_reasons"] == {"400: not this one": 1}

    willing = counting_teacher()
    summary = run(willing, attrs.evolve(config, retry_failed=True), tmp_path / "raw")
    assert [request.messages[-1]["content"] for request in willing.calls] == ["question 4"]
    assert ids(tmp_path / "raw") == ALL
    assert summary["missing"]["refused"] == 0


def test_an_answer_that_a_filter_cut_is_kept_and_left_out(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers
) -> None:
    teacher = counting_teacher()
    answer = teacher.generate

    async def generate(request: Any) -> Any:
        completion = await answer(request)
        cut = request.messages[-1]["content"] == "question 0"
        return attrs.evolve(completion, finish_reason="content_filter") if cut else completion

    teacher.generate = generate
    summary = run(teacher, config, tmp_path / "raw")
    assert ids(tmp_path / "raw") == ALL[1:]
    assert summary["refused_reasons"] == {FILTERED: 1}
    again = counting_teacher()
    run(again, config, tmp_path / "raw")
    assert again.calls == []  # it was paid for


def test_a_teacher_that_refuses_all_stops_it_early(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers
) -> None:
    teacher = scripted(counting_teacher(), lambda said, number: RequestRefusedError("400: bad model"))
    with pytest.raises(ProviderError, match="refused 20 requests in a row, the last with: 400: bad model"):
        run(teacher, config, tmp_path / "raw")
    assert sum(teacher.tries.values()) < 30


def test_a_few_requests_that_are_all_refused_are_a_failure(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers
) -> None:
    teacher = scripted(counting_teacher(), lambda said, number: RequestRefusedError("400: bad model"))
    for _ in range(2):  # the second run asks for none, and says the same
        with pytest.raises(ProviderError, match="the teacher refused all 3 requests, most often with: 400: bad model"):
            run(teacher, attrs.evolve(config, max_prompts=3), tmp_path / "raw")
    assert sum(teacher.tries.values()) == 3


def test_one_request_that_never_gets_an_answer_does_not_stop_the_others(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers
) -> None:
    def outcome(said: str, number: int) -> Outcome:
        return RetryableError("500: always") if said == "question 2" else 0.005

    summary = run(scripted(counting_teacher(), outcome), attrs.evolve(config, retries=2), tmp_path / "raw")
    assert summary["unanswered"] == [{"id": "3", "sample": 0, "reason": "500: always"}]
    assert ids(tmp_path / "raw") == [name for name in ALL if name != "3"]
    summary = run(counting_teacher(), config, tmp_path / "raw")  # a later run asks again
    assert (summary["reused"], summary["completions"]) == (39, 40)


def test_a_total_outage_stops_it_with_all_kept(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers
) -> None:
    down = False

    def outcome(said: str, number: int) -> Outcome:
        nonlocal down
        down = down or said == "question 20"
        return RetryableError("503: down") if down else None

    teacher = scripted(counting_teacher(), outcome)
    with pytest.raises(ProviderError) as caught:
        run(teacher, attrs.evolve(config, retries=3), tmp_path / "raw")
    assert "the teacher does not answer: 503: down (4 tries, and no other request was answered meanwhile)" in str(
        caught.value
    )
    assert str(caught.value).endswith("see that the server runs and can be reached, then run again to go on")
    summary = run(counting_teacher(), config, tmp_path / "raw")
    assert summary["reused"] >= 16
    assert ids(tmp_path / "raw") == ALL


def test_a_server_that_asks_to_wait_for_hours_is_an_outage(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers
) -> None:
    wait = RetryableError("429: come tomorrow", retry_after_s=80_000, overloaded=True)
    with pytest.raises(ProviderError, match=r"come tomorrow \(the server asks to wait 80,000 s\)"):
        run(scripted(counting_teacher(), lambda said, number: wait), config, tmp_path / "raw")


def test_an_answer_that_takes_too_long_is_asked_again_and_counted_as_possibly_paid(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers
) -> None:
    def outcome(said: str, number: int) -> Outcome:
        return 30.0 if said == "question 1" and number == 1 else None

    config = attrs.evolve(config, request_timeout_s=0.05)
    teacher = scripted(counting_teacher(), outcome)
    summary = run(teacher, config, tmp_path / "raw")
    assert ids(tmp_path / "raw") == ALL
    assert teacher.tries["question 1"] > 1
    # On a busy machine others may have taken too long as well.
    assert summary["spent"]["possibly_paid_requests"] == teacher.tries.total() - 40


def test_what_ends_all_lets_those_under_way_end(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers
) -> None:
    """A wrong key is found out while others are being answered: their answers are paid for, and kept."""

    def outcome(said: str, number: int) -> Outcome:
        return ProviderError("401: check the key") if said == "question 3" else 0.05

    with pytest.raises(ProviderError, match="401: check the key"):
        run(scripted(counting_teacher(), outcome), config, tmp_path / "raw")
    assert run(counting_teacher(), config, tmp_path / "raw")["reused"] == 3


@pytest.fixture(params=["tokens", "requests", "dollars"])
def budget(request: pytest.FixtureRequest) -> BudgetConfig:
    amounts: dict[str, Any] = {"tokens": 400, "requests": 10, "dollars": 0.0004}
    return BudgetConfig(**{request.param: amounts[request.param]})


PRICES = PricesConfig(models={"counting": PriceConfig(input_per_million=1.0, output_per_million=1.0)})


def test_a_budget_stops_it_with_what_there_is_and_a_larger_one_goes_on(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers, budget: BudgetConfig
) -> None:
    config = attrs.evolve(config, prices=PRICES, budget=budget)
    first = run(counting_teacher(), config, tmp_path / "raw")
    (name,) = (name for name, value in attrs.asdict(budget).items() if value is not None)
    assert 0 < first["completions"] < 40
    assert first["stopped"].startswith(f"collect.budget.{name} = ")
    assert first["missing"]["not_asked"] == 40 - first["completions"]
    assert len(ids(tmp_path / "raw")) == first["completions"]
    spent = first["spent"]
    assert spent["input_tokens"] + spent["output_tokens"] <= 400
    assert spent["dollars"] == pytest.approx((spent["input_tokens"] + spent["output_tokens"]) / 1e6)

    same = counting_teacher()
    assert run(same, config, tmp_path / "raw")["completions"] == first["completions"]
    assert same.calls == []  # what was spent before counts

    larger = run(counting_teacher(), attrs.evolve(config, budget=BudgetConfig()), tmp_path / "raw")
    assert larger["reused"] == first["completions"]
    assert ids(tmp_path / "raw") == ALL


def test_a_budget_that_allows_nothing_is_a_failure(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers
) -> None:
    with pytest.raises(ProviderError, match=r"nothing was gathered: collect\.budget\.tokens = 5 is reached"):
        run(counting_teacher(), attrs.evolve(config, budget=BudgetConfig(tokens=5)), tmp_path / "raw")


def test_dollars_without_prices_are_refused_before_the_first_call(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers
) -> None:
    teacher = counting_teacher()
    with pytest.raises(ProviderError, match="needs the teacher's prices"):
        run(teacher, attrs.evolve(config, budget=BudgetConfig(dollars=1.0)), tmp_path / "raw")
    assert teacher.calls == []


def test_a_price_of_another_model_gives_no_figure(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers
) -> None:
    other = PricesConfig(models={"another": PriceConfig(input_per_million=1.0, output_per_million=1.0)})
    summary = run(counting_teacher(), attrs.evolve(config, prices=other), tmp_path / "raw")
    assert summary["spent"]["dollars"] is None


def test_the_progress_tells_speed_cost_time_and_pace(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers
) -> None:
    seen: list[str] = []
    teacher = scripted(
        counting_teacher(),
        lambda said, n: RetryableError("429", overloaded=True) if (said, n) == ("question 0", 1) else 0.002,
    )
    config = attrs.evolve(config, prices=PRICES)
    run(teacher, config, tmp_path / "raw", on_progress=lambda done, total, note: seen.append(note))
    note = seen[len(seen) // 2]
    for part in (" tokens, ", " tok/s, $", " left, ", " at once, 1× 429"):
        assert part in note, note


def test_the_estimate_is_of_what_is_missing_and_asks_above_a_limit(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers
) -> None:
    config = attrs.evolve(config, prices=PRICES, confirm_above_dollars=0.005)
    teacher = counting_teacher()

    def look() -> Any:
        return prepare(teacher, config, tmp_path / "raw", "counting", 0).estimate

    before = look()
    assert before.requests == 40
    assert before.at_most.output == 40 * 8
    assert before.dollars_at_most == pytest.approx(before.at_most.total / 1e6)
    assert before.about.total < before.at_most.total
    question = needs_consent(before, config, external=True)
    assert question is not None
    assert "more than collect.confirm_above_dollars = 0.005" in question
    assert needs_consent(before, attrs.evolve(config, budget=BudgetConfig(dollars=0.004)), external=True) is None
    free = attrs.evolve(config, confirm_above_tokens=100)
    unpriced = attrs.evolve(before, dollars_at_most=None)
    assert needs_consent(unpriced, free, external=False) is None
    assert needs_consent(unpriced, free, external=True) is not None

    summary = run(teacher, config, tmp_path / "raw")
    spent = summary["spent"]
    assert spent["input_tokens"] <= before.at_most.input
    assert spent["output_tokens"] <= before.at_most.output
    assert look().requests == 0
    assert needs_consent(look(), config, external=True) is None


# --shard


@pytest.mark.parametrize("machines", [1, 2, 3, 7])
def test_parts_are_the_whole_and_share_nothing(
    config: CollectConfig, counting_teacher: Teachers, machines: int
) -> None:
    planned = plan_collection(attrs.evolve(config, samples_per_prompt=3), counting_teacher(), "counting", 0)
    parts = [of_shard(planned, f"{n}/{machines}") for n in range(1, machines + 1)]
    keys = [each.key for part in parts for each in part]
    assert len(keys) == len(set(keys)) == len(planned)
    assert set(keys) == {each.key for each in planned}
    assert all(part for part in parts)


def folders(root: Path, machines: int) -> Iterator[tuple[str, Path]]:
    return ((f"{n}/{machines}", root / f"machine-{n}") for n in range(1, machines + 1))


def test_folders_of_several_machines_go_together(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers
) -> None:
    merged = tmp_path / "merged"
    merged.mkdir()
    asked = 0
    for shard, folder in folders(tmp_path, 3):
        teacher = counting_teacher()
        run(teacher, attrs.evolve(config, shard=shard, completions_per_shard=5), folder)
        asked += len(teacher.calls)
        for path in folder.iterdir():
            assert not (merged / path.name).exists(), "no two machines give a file the same name"
            (merged / path.name).write_bytes(path.read_bytes())
    assert asked == 40
    found = ids(merged)
    assert sorted(found, key=int) == ALL
    indices = [index for path in merged.glob("shard_*") for index in pq.read_table(path)["prompt_idx"].to_pylist()]
    assert sorted(indices) == list(range(40))  # of the whole, not of the part

    teacher = counting_teacher()
    summary = run(teacher, config, merged)  # the whole, on the merged folder: nothing to ask
    assert teacher.calls == []
    assert [path.name for path in merged.glob("shard_*")] == ["shard_000.parquet"]
    assert ids(merged) == ALL
    assert summary["spent"]["requests"] == 40


def test_a_part_leaves_other_parts_alone(tmp_path: Path, config: CollectConfig, counting_teacher: Teachers) -> None:
    for shard, _ in folders(tmp_path, 2):
        run(counting_teacher(), attrs.evolve(config, shard=shard), tmp_path / "raw")
    assert sorted(path.name for path in (tmp_path / "raw").glob("shard_*")) == [
        "shard_1of2_000.parquet",
        "shard_2of2_000.parquet",
    ]
    assert sorted(ids(tmp_path / "raw"), key=int) == ALL


def test_shards_without_their_journal_are_never_deleted(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers
) -> None:
    for shard, folder in folders(tmp_path, 2):
        run(counting_teacher(), attrs.evolve(config, shard=shard), folder)
    first, second = (folder for _, folder in folders(tmp_path, 2))
    stray = first / "shard_2of2_000.parquet"
    stray.write_bytes((second / stray.name).read_bytes())
    teacher = counting_teacher()
    with pytest.raises(ProviderError, match=r"shard_2of2_000.parquet holds completions that no journal in .* has"):
        run(teacher, config, first)
    assert teacher.calls == []
    assert stray.exists()


def test_shards_without_their_journal_are_never_written_over(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers
) -> None:
    folder, config = tmp_path / "raw", attrs.evolve(config, max_prompts=8, completions_per_shard=4)
    run(counting_teacher(), config, folder)
    (journal,) = folder.glob("journal-*.bin")
    kept = journal.read_bytes()
    shards = {path: path.read_bytes() for path in folder.glob("shard_*")}
    assert len(shards) == 2
    # Somebody brought the shards, and no journal: to ask again would pay twice, and lose what they hold.
    journal.unlink()
    teacher = counting_teacher()
    with pytest.raises(ProviderError, match=r"shard_000.parquet holds completions that no journal in .* has"):
        run(teacher, config, folder)
    assert teacher.calls == []
    assert {path: path.read_bytes() for path in folder.glob("shard_*")} == shards
    # One that has been damaged in the journal is asked again, though a shard still has it; a broken shard is made anew.
    journal.write_bytes(kept[:-40])
    next(iter(shards)).write_bytes(b"no Parquet")
    run(teacher, config, folder)
    assert len(teacher.calls) == 1
    assert len(ids(folder)) == 8


def test_the_template_is_put_around_the_prompt(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers
) -> None:
    teacher = counting_teacher()
    config = attrs.evolve(config, max_prompts=1, prompt_template="{x} <{prompt}>", system_prompt="Be short.")
    run(teacher, config, tmp_path / "raw")
    assert teacher.calls[0].messages == (
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "{x} <question 0>"},
    )
    metadata = json.loads(pq.read_schema(tmp_path / "raw/shard_000.parquet").metadata[b"bitnet_raw"])
    assert metadata["sampling"]["prompt_template"] == "{x} <{prompt}>"
