"""A small real tokenizer, and raw shards written by hand after docs/raw-shard.md, not by the providers."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SENTENCES = [
    'Give me JSON: {"name": "Ada", "born": 1815, "tags": ["maths", "poetry"]}',
    "The sea was calm, and the ship lay still: nothing moved but the gulls.",
    '```json\n{"ok": true}\n```',
    "Ein Glas Öl kostet 3 €, sagte sie — und ging. 猫が好きです。",
]
RAW_COLUMNS = pa.schema(
    [
        ("prompt_idx", pa.int64()),
        ("sample_idx", pa.int32()),
        ("request_sha256", pa.string()),
        ("source_id", pa.string()),
        ("kind", pa.string()),
        ("format", pa.string()),
        ("messages", pa.string()),
        ("text", pa.binary()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("token_ids", pa.list_(pa.int32())),
        ("token_bytes", pa.list_(pa.binary())),
        ("token_logprobs", pa.list_(pa.float32())),
        ("candidate_counts", pa.list_(pa.int32())),
        ("candidate_ids", pa.list_(pa.int32())),
        ("candidate_bytes", pa.list_(pa.binary())),
        ("candidate_logprobs", pa.list_(pa.float32())),
        ("log_z", pa.list_(pa.float32())),
        ("entropy", pa.list_(pa.float32())),
        ("finish_reason", pa.string()),
        ("model", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("latency_s", pa.float64()),
    ]
)


def train_tokenizer(folder: Path, vocab_size: int, sentences: Sequence[str] = SENTENCES) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences * 3, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tokenizer(tmp_path_factory.mktemp("tokenizer"), 320)


@pytest.fixture(scope="session")
def other_tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tokenizer(tmp_path_factory.mktemp("other"), 320, [sentence[::-1] for sentence in SENTENCES])


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> Any:
    return PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)


Candidates = Sequence[tuple[int, float]]


@pytest.fixture
def completion(tokenizer: Any) -> Callable[..., dict[str, Any]]:
    """A row of a raw shard: prompt and answer as text, candidates as (id, log-probability) for each answer token."""

    def build(
        prompt_idx: int,
        prompt: str,
        answer: str,
        candidates: Callable[[int, int], Candidates] | None = None,
        **columns: Any,
    ) -> dict[str, Any]:
        prompt_ids, token_ids = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer))
        offered = [list(candidates(step, id_)) if candidates else [] for step, id_ in enumerate(token_ids)]
        logprobs = [dict(reversed(each)).get(id_, float("nan")) for each, id_ in zip(offered, token_ids, strict=True)]
        return {
            "prompt_idx": prompt_idx,
            "sample_idx": 0,
            "request_sha256": f"{prompt_idx:064x}",
            "source_id": f"document-{prompt_idx}",
            "kind": "sample" if prompt else "score",
            "format": None,
            "messages": json.dumps([{"role": "user", "content": prompt}]) if prompt else "[]",
            "text": answer.encode(),
            "prompt_ids": prompt_ids,
            "token_ids": token_ids,
            "token_bytes": None,
            "token_logprobs": logprobs,
            "candidate_counts": [len(each) for each in offered],
            "candidate_ids": [id_ for each in offered for id_, _ in each],
            "candidate_bytes": None,
            "candidate_logprobs": [logprob for each in offered for _, logprob in each],
            "log_z": None,
            "entropy": None,
            "finish_reason": "stop",
            "model": "small",
            "prompt_tokens": len(prompt_ids),
            "latency_s": 0.5,
            **columns,
        }

    return build


@pytest.fixture
def write_raw() -> Callable[..., Path]:
    def write(file: Path, rows: Sequence[dict[str, Any]], *, top_k: int = 3, **metadata: Any) -> Path:
        record = {
            "version": 1,
            "teacher": {"model": "small"},
            "kind": "local",
            "sampling": {"temperature": 1.0},
            "top_k": top_k,
            "capabilities": {},
            "created": "2026-11-01T00:00:00+00:00",
            **metadata,
        }
        table = pa.Table.from_pylist(list(rows), schema=RAW_COLUMNS)
        file.parent.mkdir(parents=True, exist_ok=True)
        # Two row groups, so that reading across their border is exercised.
        pq.write_table(
            table.replace_schema_metadata({"bitnet_raw": json.dumps(record)}),
            str(file),
            compression="zstd",
            row_group_size=max(1, (len(rows) + 1) // 2),
        )
        return file

    return write


@pytest.fixture
def random_raw(
    tmp_path: Path, completion: Callable[..., dict[str, Any]], write_raw: Callable[..., Path], tokenizer: Any
) -> tuple[Path, list[dict[str, Any]]]:
    """Nine documents (two of them plain texts, one sampled twice) in two shards, out of order; and their rows."""
    rng = np.random.default_rng(0)

    def candidates(step: int, token_id: int) -> Candidates:
        count = int(rng.integers(0, 6)) if step % 7 == 3 else 3
        ids = rng.choice(len(tokenizer), size=count, replace=False)
        masses = rng.dirichlet(np.ones(count + 1))[:count]
        return [(int(id_), float(np.log(mass))) for id_, mass in zip(ids, masses, strict=True)]

    rows = [
        completion(i, f"Question {i}?" if i < 7 else "", SENTENCES[i % len(SENTENCES)] * (1 + i % 2), candidates)
        for i in range(9)
    ]
    rows.append(completion(2, "Question 2?", "The sea, again.", candidates, sample_idx=1))
    shuffled = [rows[i] for i in rng.permutation(len(rows))]
    write_raw(tmp_path / "raw" / "shard_000.parquet", shuffled[:6])
    write_raw(tmp_path / "raw" / "shard_001.parquet", shuffled[6:])
    return tmp_path / "raw", rows
