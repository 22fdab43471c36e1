"""The collector: everything asked once, nothing lost, whatever stops it."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bitnet_providers.collect import collect as collector
from bitnet_providers.collect.collect import collect
from bitnet_providers.config import CollectConfig
from bitnet_providers.contract import ProviderError

Teachers = Callable[..., Any]


@pytest.fixture
def config(tmp_path: Path) -> CollectConfig:
    prompts, texts = tmp_path / "prompts.jsonl", tmp_path / "texts.jsonl"
    lines = [{"id": f"p{n}", "prompt": f"question {n}"} for n in range(5)] + [
        {"id": "j", "prompt": "give JSON", "format": "json"}
    ]
    prompts.write_text("\n".join(map(json.dumps, lines)))
    texts.write_text("\n".join(json.dumps({"id": f"t{n}", "text": f"a text to score {n}"}) for n in range(3)))
    return CollectConfig(
        prompts=prompts, texts=texts, samples_per_prompt=2, top_k=3, concurrency=4, completions_per_shard=6
    )


def run(teacher: Any, config: CollectConfig, folder: Path, seed: int = 0, **more: Any) -> dict[str, Any]:
    return asyncio.run(collect(teacher, config, folder, "counting", seed, **more))


def rows(folder: Path) -> list[dict[str, Any]]:
    return pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("shard_*.parquet"))]).to_pylist()


def test_everything_is_asked_once_and_lies_in_order(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers
) -> None:
    teacher, seen = counting_teacher(), []
    summary = run(teacher, config, tmp_path / "raw", on_progress=lambda *progress: seen.append(progress))

    assert len(teacher.calls) == 6 * 2 + 3
    assert 1 < teacher.most_at_once <= 4
    found = rows(tmp_path / "raw")
    assert [(row["prompt_idx"], row["sample_idx"]) for row in found] == [
        *((prompt, sample) for prompt in range(6) for sample in range(2)),
        *((text, 0) for text in (6, 7, 8)),
    ]
    assert [row["source_id"] for row in found][::2] == ["p0", "p1", "p2", "p3", "p4", "j", "t0", "t2"]
    assert {row["kind"] for row in found[:12]} == {"sample"}
    assert {row["kind"] for row in found[12:]} == {"score"}
    assert found[0]["text"] != found[1]["text"]  # two draws of one prompt
    assert json.loads(found[0]["messages"]) == [{"role": "user", "content": "question 0"}]
    assert sorted(path.name.partition("-0")[0] for path in (tmp_path / "raw").iterdir()) == [
        "journal",
        "ledger",
        "shard_000.parquet",
        "shard_001.parquet",
        "shard_002.parquet",
    ]
    assert seen[0][:2] == (0, 15)
    assert seen[-1][:2] == (15, 15)
    tokens = sum(len(row["token_logprobs"]) for row in found)
    assert summary["tokens"] == summary["kd_positions"] == tokens
    assert summary["completions_by"] == {"sample json": 2, "sample plain": 10, "score plain": 3}
    assert (summary["completions"], summary["reused"], summary["shards"]) == (15, 0, 3)


def test_a_second_run_asks_for_nothing(tmp_path: Path, config: CollectConfig, counting_teacher: Teachers) -> None:
    run(counting_teacher(), config, tmp_path / "raw")
    before = rows(tmp_path / "raw")
    teacher = counting_teacher()
    summary = run(teacher, config, tmp_path / "raw")
    assert teacher.calls == []
    assert summary["reused"] == summary["completions"] == 15
    assert summary["headline"].startswith("15 completions (15 already there), ")
    assert rows(tmp_path / "raw") == before


def test_a_damaged_completion_is_said_and_asked_again(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers
) -> None:
    run(counting_teacher(), config, tmp_path / "raw")
    before = rows(tmp_path / "raw")
    (journal,) = (tmp_path / "raw").glob("journal-*.bin")
    journal.write_bytes(journal.read_bytes().replace(b"score 1 ", b"scare 1 ").replace(b"score 2 ", b"scare 2 "))
    teacher, seen = counting_teacher(), []
    summary = run(teacher, config, tmp_path / "raw", on_progress=lambda *progress: seen.append(progress))
    assert len(teacher.calls) == 2
    assert seen[0] == (13, 15, "13 already there; 2 damaged completions will be asked again")
    assert summary["damaged"] == 2
    assert summary["headline"].endswith("; 2 damaged completions in the journal asked again")
    assert rows(tmp_path / "raw") == before

    seen.clear()  # mended: nothing is asked, nothing is said to be
    summary = run(teacher, config, tmp_path / "raw", on_progress=lambda *progress: seen.append(progress))
    assert len(teacher.calls) == 2
    assert seen == [(15, 15, "all there")]
    assert "damaged" not in summary["headline"]


def test_a_shard_made_again_is_the_same_file(tmp_path: Path, config: CollectConfig, counting_teacher: Teachers) -> None:
    run(counting_teacher(), config, tmp_path / "raw")
    shard = tmp_path / "raw" / "shard_001.parquet"
    before = shard.read_bytes()
    shard.unlink()
    run(counting_teacher(), config, tmp_path / "raw")
    assert shard.read_bytes() == before
    # a time of writing would make it another file a second later
    assert "created" not in json.loads(pq.read_schema(shard).metadata[b"bitnet_raw"])


def test_another_concurrency_or_shard_size_is_no_other_request(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers
) -> None:
    run(counting_teacher(), config, tmp_path / "raw")
    teacher = counting_teacher()
    run(teacher, attrs.evolve(config, concurrency=1, completions_per_shard=100), tmp_path / "raw")
    assert teacher.calls == []
    assert [path.name for path in (tmp_path / "raw").glob("shard_*")] == ["shard_000.parquet"]


@pytest.mark.parametrize("change", [{"temperature": 0.5}, {"max_new_tokens": 7}, {"system_prompt": "Be short."}])
def test_another_sampling_is_another_request(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers, change: dict[str, Any]
) -> None:
    run(counting_teacher(), config, tmp_path / "raw")
    teacher = counting_teacher()
    run(teacher, attrs.evolve(config, **change), tmp_path / "raw")
    assert len(teacher.calls) == 12  # the texts are scored as before


def test_the_seed_counts_only_where_something_is_drawn(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers
) -> None:
    run(counting_teacher(), config, tmp_path / "a", seed=0)
    again = counting_teacher()
    run(again, config, tmp_path / "a", seed=1)
    assert len(again.calls) == 12

    greedy = attrs.evolve(config, temperature=0.0)
    run(counting_teacher(), greedy, tmp_path / "b", seed=0)
    again = counting_teacher()
    run(again, greedy, tmp_path / "b", seed=1)
    assert again.calls == []


def test_more_prompts_ask_only_for_the_new_ones_and_order_follows_the_file(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers
) -> None:
    run(counting_teacher(), config, tmp_path / "raw")
    assert config.prompts is not None
    old = config.prompts.read_text()
    config.prompts.write_text(json.dumps({"id": "new", "prompt": "a new one"}) + "\n" + old)
    teacher = counting_teacher()
    run(teacher, config, tmp_path / "raw")
    assert len(teacher.calls) == 2
    assert [row["source_id"] for row in rows(tmp_path / "raw")][:4] == ["new", "new", "p0", "p0"]


def test_one_prompt_twice_in_the_file_is_drawn_twice(tmp_path: Path, counting_teacher: Teachers) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(json.dumps({"id": name, "prompt": "same"}) for name in "ab"))
    teacher = counting_teacher()
    run(teacher, CollectConfig(prompts=path, top_k=3), tmp_path / "raw")
    first, second = rows(tmp_path / "raw")
    assert len(teacher.calls) == 2
    assert first["request_sha256"] == second["request_sha256"]
    assert first["text"] != second["text"]
    assert (second["prompt_idx"], second["sample_idx"]) == (1, 0)


def test_cancelled_on_the_way_what_was_answered_is_kept(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers
) -> None:
    config = attrs.evolve(config, concurrency=2)

    async def stop_when_it_hangs() -> None:
        teacher = counting_teacher(hang_on="question 3")
        task = asyncio.create_task(collect(teacher, config, tmp_path / "raw", "counting", 0))
        while len(teacher.calls) < 8:  # both samples of question 3 hang
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(stop_when_it_hangs())
    assert list((tmp_path / "raw").glob("shard_*")) == []
    teacher = counting_teacher()
    summary = run(teacher, config, tmp_path / "raw")
    assert summary["reused"] == 6  # questions 0 to 2, two samples each
    assert len(teacher.calls) == 15 - 6


def test_an_answer_that_came_in_the_last_moment_is_kept(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers
) -> None:
    """The stop comes between an answer and its way to the disk."""
    teacher = counting_teacher()
    answer = teacher.generate

    async def answer_and_stop(request: Any) -> Any:
        completion = await answer(request)
        if request.messages[-1]["content"] == "question 1":
            task.cancel()
        return completion

    teacher.generate = answer_and_stop
    task: asyncio.Task[Any]

    async def main() -> None:
        nonlocal task
        task = asyncio.create_task(
            collect(teacher, attrs.evolve(config, concurrency=1), tmp_path / "raw", "counting", 0)
        )
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    # question 0 twice and question 1 once were answered; no fourth goes out before the disk has the third
    assert len(teacher.calls) == 3
    assert run(counting_teacher(), config, tmp_path / "raw")["reused"] == 3


def test_one_refused_request_is_named_and_the_others_are_kept(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers
) -> None:
    with pytest.raises(ProviderError) as caught:
        run(counting_teacher(fail_on="question 4"), attrs.evolve(config, concurrency=15), tmp_path / "raw")
    assert str(caught.value) == '[collect] sample "p4": the service said no: wait and run again'
    teacher = counting_teacher()
    summary = run(teacher, config, tmp_path / "raw")
    assert summary["reused"] >= 8  # questions 0 to 3 were answered before
    assert len(teacher.calls) + summary["reused"] == 15


def test_a_full_disk_stops_it_with_what_was_kept(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            run(counting_teacher(), config, tmp_path / "raw")
    assert run(counting_teacher(), config, tmp_path / "raw")["completions"] == 15


def test_test_documents_come_last_and_the_shards_say_where_they_begin(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers
) -> None:
    prompts, texts = tmp_path / "test.jsonl", tmp_path / "test.txt"
    prompts.write_text(json.dumps({"id": "p0", "prompt": "another question"}))
    texts.write_text("a text for the test\nand one more")
    run(counting_teacher(), config, tmp_path / "raw")
    teacher = counting_teacher()
    run(teacher, attrs.evolve(config, test_prompts=prompts, test_texts=texts, max_texts=3), tmp_path / "raw")
    assert len(teacher.calls) == 2 + 2, "what was asked before is not asked again"
    assert [(row["prompt_idx"], row["kind"]) for row in rows(tmp_path / "raw")][-5:] == [
        (8, "score"), (9, "sample"), (9, "sample"), (10, "score"), (11, "score"),
    ]  # fmt: skip
    told = [json.loads(pq.read_schema(path).metadata[b"bitnet_raw"]) for path in (tmp_path / "raw").glob("shard_*")]
    assert {each["test_from"] for each in told} == {9}
    run(counting_teacher(), config, tmp_path / "without")
    (first, *_) = sorted((tmp_path / "without").glob("shard_*"))
    assert "test_from" not in json.loads(pq.read_schema(first).metadata[b"bitnet_raw"])


def test_a_long_journal_is_in_several_files(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collector, "FILE_BYTES", 2**10)
    summary = run(counting_teacher(), attrs.evolve(config, concurrency=2), tmp_path / "raw")
    assert len(list((tmp_path / "raw").glob("journal-*.bin"))) > 2
    teacher = counting_teacher()
    assert run(teacher, config, tmp_path / "raw")["completions"] == summary["completions"]
    assert teacher.calls == []


def test_a_prompts_file_that_grows_meanwhile_moves_no_test_document(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers
) -> None:
    teacher, file, texts = counting_teacher(), tmp_path / "own.txt", tmp_path / "test.txt"
    file.write_text("one\ntwo\n")
    texts.write_text("a text for the test")
    generate = teacher.generate

    async def meanwhile(request: Any) -> Any:
        file.write_text("one\ntwo\nthree\nfour\n")  # for the next run
        return await generate(request)

    teacher.generate = meanwhile
    run(teacher, attrs.evolve(config, prompts=file, texts=None, test_texts=texts), tmp_path / "raw")
    (shard,) = (tmp_path / "raw").glob("shard_*")
    assert [row["prompt_idx"] for row in rows(tmp_path / "raw") if row["kind"] == "score"] == [2]
    assert (
        json.loads(pq.read_schema(shard).metadata[b"bitnet_raw"])["test_from"] == 2
    )  # 4: the test would be trained on


def test_what_the_teacher_can_not_do_is_said_before_it_is_asked(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers
) -> None:
    def refusal(config: CollectConfig, **teacher: Any) -> str:
        asked = counting_teacher(**teacher)
        with pytest.raises(ProviderError) as caught:
            run(asked, config, tmp_path / "raw")
        assert asked.calls == []
        return str(caught.value)

    assert refusal(attrs.evolve(config, top_k=9)) == (
        'collect.top_k is 9, and "counting" gives at most 5 candidates  → set collect.top_k = 5'
    )
    assert refusal(config, scoring=False) == (
        'collect.texts needs a teacher that scores given text, and "counting" does not  → '
        "take collect.texts out, or use another teacher"
    )
    assert refusal(attrs.evolve(config, top_p=0.9), top_p=False) == (
        'collect.top_p is 0.9, and "counting" knows no top-p  → set collect.top_p = 1.0'
    )
    only_test = attrs.evolve(config, texts=None, test_texts=config.texts)
    assert refusal(only_test, scoring=False).startswith("collect.test_texts needs a teacher that scores given text")
    assert refusal(CollectConfig()) == "[collect] asks for nothing  → set collect.prompts, collect.texts, or both"


def test_a_teacher_without_candidates_is_said_loudly(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers
) -> None:
    summary = run(counting_teacher(top_logprobs=0), config, tmp_path / "raw")
    assert summary["kd_positions"] == 0
    assert "no top log-probabilities" in summary["headline"]


def test_the_setting_that_leaves_no_candidates_is_named(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers
) -> None:
    headline = run(counting_teacher(), attrs.evolve(config, top_k=0), tmp_path / "raw")["headline"]
    assert headline.endswith("; no candidates: collect.top_k = 0, so a student learns by CE alone")


def test_the_metadata_says_how_it_was_asked(tmp_path: Path, config: CollectConfig, counting_teacher: Teachers) -> None:
    run(counting_teacher(), attrs.evolve(config, system_prompt="Be short."), tmp_path / "raw", seed=7)
    shard = pq.read_table(tmp_path / "raw" / "shard_000.parquet")
    metadata = json.loads(shard.schema.metadata[b"bitnet_raw"])
    assert metadata["version"] == 1
    assert metadata["kind"] == "counting"
    assert metadata["teacher"]["model"] == "counting"
    assert metadata["top_k"] == 3
    assert metadata["sampling"]["seed"] == 7
    assert metadata["capabilities"]["token_bytes"] is True
    first = json.loads(shard["messages"][0].as_py())
    assert first[0] == {"role": "system", "content": "Be short."}


def test_the_template_of_a_teacher_that_knows_it_lies_in_the_shard_and_in_no_key(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers
) -> None:
    def metadata_and_keys(teacher: Any, name: str) -> tuple[dict[str, Any], list[str]]:
        run(teacher, config, tmp_path / name)
        shard = pq.read_table(tmp_path / name / "shard_000.parquet")
        return json.loads(shard.schema.metadata[b"bitnet_raw"]), shard["request_sha256"].to_pylist()

    template = "{% for m in messages %}naïve {{ m.content }}\n{% endfor %}"
    knowing = counting_teacher()
    knowing.chat_template = template
    told, keys = metadata_and_keys(knowing, "knowing")
    untold, same_keys = metadata_and_keys(counting_teacher(), "unknowing")
    assert told == untold | {"template": template}
    assert "template" not in untold
    assert keys == same_keys
