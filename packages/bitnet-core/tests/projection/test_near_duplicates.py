import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_core.config.project import ProjectConfig
from bitnet_core.projection.near_duplicates import BANDS, RULE, SHINGLE_BYTES, keys_of, shared_names
from bitnet_core.projection.project import project
from bitnet_core.traces.dataset import KDTraceDataset
from bitnet_core.traces.schema import read_metadata
from bitnet_core.traces.splits import held_out, measured_split

WORDS = (
    *("the", "a", "of", "sea", "hill", "old", "new", "stone", "river", "light"),
    *("bread", "walks", "sings", "north", "winter", "lamp", "quiet", "small", "green", "bell"),
)


def story(seed: int, words: int = 120) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def changed(text: str, every: int) -> str:
    """Each so many words another."""
    return " ".join("otherwise" if i % every == 0 else word for i, word in enumerate(text.split()))


def asked(prompt: str) -> str:
    return json.dumps([{"role": "user", "content": prompt}])


def names_of(documents: dict[str, tuple[str, str]]) -> dict[str, str]:
    """name → its shared name; each document is (messages, text)."""
    keys = np.stack([keys_of(messages, text.encode()) for messages, text in documents.values()])
    return dict(zip(documents, shared_names(list(documents), keys), strict=True))


def jaccard(first: str, second: str) -> float:
    """Of all their shingles: what MinHash estimates."""
    one, other = (
        {text[i : i + SHINGLE_BYTES] for i in range(len(text) - SHINGLE_BYTES + 1)} for text in (first, second)
    )
    return len(one & other) / len(one | other)


def test_a_copy_with_another_spacing_case_and_a_few_words_is_the_same_document() -> None:
    text = story(1)
    copy = changed(text, 40).upper().replace(" ", ",  ")
    assert names_of({"b": (asked("one"), text), "a": (asked("two"), copy)}) == {"b": "a", "a": "a"}


def test_other_texts_short_answers_and_other_prompts_stay_apart() -> None:
    documents = {f"story-{i}": (asked(f"prompt {i}"), story(i)) for i in range(40)}
    documents |= {f"yes-{i}": (asked(f"Is {i} a number?"), "Yes, it is a number.") for i in range(5)}
    documents |= {"plain-1": ("[]", "a short text"), "plain-2": ("[]", "one more short text")}
    assert names_of(documents) == {name: name for name in documents}


def test_one_prompt_is_one_document_whatever_its_ids_and_answers() -> None:
    documents = {"b": (asked("Name a bird!"), story(1)), "a": (asked("name a bird"), story(2))}
    assert set(names_of(documents).values()) == {"a"}
    assert set(names_of({"b": ("[]", "A short text."), "a": ("[]", "a short text")}).values()) == {"a"}


def test_how_often_two_texts_meet_follows_the_stated_chance() -> None:
    """1 - (1 - J^rows)^bands, with J counted over all shingles: none of it is MinHash's own word."""
    met, expected = [], []
    for seed in range(60):
        first, second = story(seed, 200), changed(story(seed, 200), 9 + seed % 8)
        keys = [keys_of("[]", text.encode())[1:] for text in (first, second)]
        met.append(bool((keys[0] == keys[1]).any()))
        expected.append(1 - (1 - jaccard(first, second) ** int(RULE["band_hashes"])) ** BANDS)
    assert 0.2 < np.mean(expected) < 0.8, "the texts tell nothing"
    assert np.mean(met) == pytest.approx(np.mean(expected), abs=0.15)


@given(st.permutations(range(12)))
def test_the_order_of_the_documents_does_not_matter(order: list[int]) -> None:
    texts = [story(i // 3) if i % 3 else changed(story(i // 3), 50) for i in range(12)]
    documents = {f"document-{i:02d}": (asked(f"prompt {i}"), texts[i]) for i in range(12)}
    in_order = names_of(documents)
    assert names_of({f"document-{i:02d}": documents[f"document-{i:02d}"] for i in order}) == in_order
    assert set(in_order.values()) == {"document-00", "document-03", "document-06", "document-09"}


def test_a_chain_of_copies_is_one_document() -> None:
    keys = np.zeros((4, 1 + BANDS), dtype=np.uint64)
    for number, (a, b) in enumerate([(3, 1), (1, 2), (2, 0)]):
        keys[[a, b], number] = 7
    assert shared_names(["d", "c", "b", "a"], keys) == ["a"] * 4


def test_keys_are_pinned() -> None:
    """Other ones would move documents of existing runs between the splits."""
    assert keys_of(asked("one"), story(1).encode())[:3].tolist() == PINNED


PINNED = [3744968265758366993, 15642230632699419161, 2153209390085145515]

Build = Callable[..., dict[str, Any]]
Write = Callable[..., Path]


def split_of(data: Path) -> dict[int, str]:
    table = pq.read_table(data / "kd_shard_000.parquet", columns=["prompt_idx", "split"])
    return dict(zip(table["prompt_idx"].to_pylist(), table["split"].to_pylist(), strict=True))


@pytest.fixture
def leaking(completion: Build) -> list[dict[str, Any]]:
    """A file in which each answer stands three times under other names and prompts, once with a word changed."""
    return [
        completion(3 * i + copy, f"Prompt {i} {copy}", text)
        for i in range(20)
        for copy, text in enumerate([story(i, 40), story(i, 40), changed(story(i, 40), 39)])
    ]


def test_a_leaking_file_is_split_without_a_leak(
    leaking: list[dict[str, Any]], write_raw: Write, tokenizer_folder: Path, tmp_path: Path
) -> None:
    write_raw(tmp_path / "raw" / "shard_000.parquet", leaking)
    summary = project(tmp_path / "raw", tmp_path / "data", tokenizer_folder, ProjectConfig(holdout_fraction=0.3), 3)
    found = split_of(tmp_path / "data")
    by_name = held_out([row["source_id"] for row in leaking], 0.3, 3)
    assert any(len(set(by_name[3 * i : 3 * i + 3].tolist())) == 2 for i in range(20)), "names alone would not leak"
    assert all(len({found[3 * i + copy] for copy in range(3)}) == 1 for i in range(20))
    assert set(found.values()) == {"train", "heldout"}
    assert (summary["near_duplicate_documents"], summary["test_documents"]) == (60, 0)
    metadata = read_metadata(pq.read_schema(tmp_path / "data" / "kd_shard_000.parquet"), tmp_path)
    assert metadata is not None
    assert metadata.projection["near_duplicates"] == RULE
    assert measured_split(tmp_path / "data") == "heldout"


def test_without_repetitions_the_names_decide_as_they_did(
    completion: Build, write_raw: Write, tokenizer_folder: Path, tmp_path: Path
) -> None:
    rows = [completion(i, f"Prompt {i}", story(i, 30)) for i in range(40)]
    write_raw(tmp_path / "raw" / "shard_000.parquet", rows)
    project(tmp_path / "raw", tmp_path / "data", tokenizer_folder, ProjectConfig(holdout_fraction=0.3), 3)
    found = split_of(tmp_path / "data")
    assert [found[i] == "heldout" for i in range(40)] == held_out([r["source_id"] for r in rows], 0.3, 3).tolist()


def test_test_documents_are_apart_and_their_copies_go_with_them(
    completion: Build, write_raw: Write, tokenizer_folder: Path, tmp_path: Path
) -> None:
    rows = [completion(i, f"Prompt {i}", story(i, 30)) for i in range(20)]
    rows.append(completion(20, "Another", changed(story(25, 30), 29)))  # trained on, if nothing saw that it is test
    # A test file's ids say nothing of the others': "document-3" is two documents.
    rows += [completion(21 + i, f"Test {i}", story(20 + i, 30), source_id=f"document-{i}") for i in range(10)]
    write_raw(tmp_path / "raw" / "shard_000.parquet", rows, test_from=21)
    summary = project(tmp_path / "raw", tmp_path / "data", tokenizer_folder, ProjectConfig(holdout_fraction=0.3), 3)
    found = split_of(tmp_path / "data")
    assert {i for i, split in found.items() if split == "test"} == {20, *range(21, 31)}
    assert {found[i] for i in range(20)} == {"train", "heldout"}
    assert (summary["test_documents"], summary["moved_to_test"]) == (11, 1)
    assert measured_split(tmp_path / "data") == "test"
    sizes = [len(KDTraceDataset(tmp_path / "data", split=split)) for split in ("train", "heldout", "test", None)]
    assert sizes[2] == 11
    assert sum(sizes[:3]) == sizes[3] == 31
    assert sorted(KDTraceDataset(tmp_path / "data", split="test").prompt_idx.tolist()) == list(range(20, 31))
