"""What ends a teacher's turn, and what a student has no token for."""

import hashlib
import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bitnet_core.config.project import ProjectConfig
from bitnet_core.errors import CoreError
from bitnet_core.losses.masks_and_rows import response_mask
from bitnet_core.projection.project import project
from bitnet_core.projection.student_text import Student
from bitnet_core.projection.teacher_text import ends_by_content
from bitnet_core.traces.dataset import KDTraceDataset
from bitnet_core.traces.schema import read_metadata
from bitnet_core.traces.tokenizer import id_to_bytes, load_tokenizer, tokenizer_digests, tokenizer_identity

Write = Callable[..., Path]
RealTokenizer = Callable[[str], Path]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def raw_row(number: int, tokens: list[bytes], text: bytes, reason: str = "stop", other: bytes = b"?") -> dict[str, Any]:
    """Each token has probability 0.5, and `other` 0.25."""
    return {
        "prompt_idx": number,
        "sample_idx": 0,
        "request_sha256": "",
        "source_id": str(number),
        "kind": "sample",
        "messages": json.dumps([{"role": "user", "content": "Say it."}]),
        "text": text,
        "token_bytes": tokens,
        "token_logprobs": [math.log(0.5)] * len(tokens),
        "candidate_counts": [2] * len(tokens),
        "candidate_bytes": [each for token in tokens for each in (token, other)],
        "candidate_logprobs": [math.log(0.5), math.log(0.25)] * len(tokens),
        "finish_reason": reason,
        "model": "hosted",
        "prompt_tokens": 5,
        "latency_s": 0.1,
    }


def projected(
    rows: list[dict[str, Any]], write_raw: Write, student: Path, under: Path, **config: Any
) -> tuple[dict[int, list[dict[str, Any]]], dict[str, Any]]:
    """The response's rows by prompt, and the summary."""
    template = under / "chatml.jinja"
    template.write_text(CHATML)
    write_raw(under / "raw" / "shard_000.parquet", rows, kind="openai", teacher={"model": "hosted"})
    settings_ = ProjectConfig(chat_template=str(template), holdout_fraction=0.3, **config)
    summary = project(under / "raw", under / "data", student, settings_, seed=0)
    found: dict[int, list[dict[str, Any]]] = {}
    for row in pq.read_table(str(under / "data")).to_pylist():
        if not row["is_prompt"]:
            found.setdefault(row["prompt_idx"], []).append(row)
    return found, summary


def masses(row: dict[str, Any]) -> dict[int, float]:
    pairs = zip(row["topk_ids"], row["topk_logprobs"], strict=True)
    return {id_: math.exp(value) for id_, value in pairs if value > -math.inf}


@pytest.mark.parametrize("name", [b"<|user|>", b"[|endofturn|]", b"<turn|>", b"<seed:eos>", b"\xe2\x90\x83", b"EOT"])
def test_an_end_token_of_any_name(
    name: bytes, tokenizer_folder: Path, tokenizer: Any, write_raw: Write, tmp_path: Path
) -> None:
    """It is the student's end of turn: where it stands, and among the candidates before it."""
    rows = [
        raw_row(0, [b"Hello", b" there", name], b"Hello there", other=name),
        raw_row(1, [b" Hello", b" there", name], b"Hello there"),  # with SentencePiece's prefix space
        raw_row(2, [b"Hello", b" there"], b"Hello there", reason="length", other=name),
    ]
    found, summary = projected(rows, write_raw, tokenizer_folder, tmp_path)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for number, has_end in ((0, True), (1, True), (2, False)):
        spelt = b"".join(row["teacher_sample_text"] for row in found[number])
        assert spelt == b"Hello there" + b"<|im_end|>" * has_end
    assert found[0][-1]["has_kd"]
    assert masses(found[0][-1])[end] == pytest.approx(0.75, rel=1e-3)  # both candidates are this token
    assert masses(found[1][-1])[end] == pytest.approx(0.5, rel=1e-3)
    first = next(row for row in found[2] if row["has_kd"])
    assert masses(first)[end] == pytest.approx(0.25, rel=1e-3)
    assert summary["texts_differing"] == 0


def test_a_name_that_a_text_says_is_no_end_elsewhere(
    tokenizer_folder: Path, tokenizer: Any, write_raw: Write, tmp_path: Path
) -> None:
    rows = [
        raw_row(0, [b"Hello", b" User"], b"Hello"),  # cut by a stop word
        raw_row(1, [b"The", b" User", b" left"], b"The User left", other=b" User"),
    ]
    found, _ = projected(rows, write_raw, tokenizer_folder, tmp_path)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert found[0][-1]["teacher_sample_id"] == end
    assert masses(found[0][-1])[end] == pytest.approx(0.5, rel=1e-3)
    assert b"".join(row["teacher_sample_text"] for row in found[1]) == b"The User left<|im_end|>"
    assert not any(end in masses(row) for row in found[1])


@given(
    text=st.text(max_size=20),
    last=st.one_of(st.text(min_size=1, max_size=8), st.sampled_from(["<|user|>", "\n", " ", "</s>"])),
    reason=st.sampled_from(["stop", "length", "tool_calls", "scored"]),
    prefix=st.sampled_from([b"", b" ", b"x"]),
    inside=st.booleans(),
)
def test_what_a_text_proves(text: str, last: str, reason: str, prefix: bytes, inside: bool) -> None:
    content = (text + last * inside).encode()
    spelt = prefix + (text + last).encode()
    proved = ends_by_content(spelt, last.encode(), content, reason)
    stands_behind = prefix + text.encode() in (content, b" " + content)
    assert proved == (reason != "length" and bool(last.strip(" \t\n\r\x0b\x0c")) and stands_behind)
    assert not ends_by_content(b"cut \xf0\x9f", b"\xf0\x9f", b"cut ", "stop")  # a piece of a character


# --- unknown characters ----------------------------------------------------------------------------------------------


@cache
def small_vocabulary(folder: Path, kind: str) -> Path:
    """Tokenizers that know the letters of "naive tea" alone."""
    letters = "naive t"
    if kind == "unigram":
        pieces = [("<unk>", 0.0), ("▁", -1.0), *((each, -2.0) for each in letters if each != " ")]
        tokenizer = Tokenizer(models.Unigram(pieces, 0, False))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    elif kind == "bpe":
        vocab = {piece: id_ for id_, piece in enumerate(["<unk>", "▁", *letters.replace(" ", "")])}
        tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", fuse_unk=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    else:  # bytes without a token are left out, as SmolLM2 leaves out a few
        alphabet = [each for each in sorted(pre_tokenizers.ByteLevel.alphabet()) if each not in "Łð©"]
        tokenizer = Tokenizer(models.BPE({piece: id_ for id_, piece in enumerate(alphabet)}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>").save_pretrained(folder / kind)
    return folder / kind


@pytest.mark.parametrize("kind", ["unigram", "bpe", "lossy bytes"])
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(st.sampled_from(["na", "ï", "ve", " tea", "🦄", "é", " ", "t", "汉"]), min_size=1, max_size=8))
def test_only_what_is_known_is_taught(tmp_path_factory: Any, kind: str, pieces: list[str]) -> None:
    """The rows that aren't marked spell the text without the characters that the tokenizer doesn't have."""
    folder = small_vocabulary(tmp_path_factory.getbasetemp(), kind)
    table = id_to_bytes(load_tokenizer(folder))
    known = {each for token in table for each in token.decode("utf-8", "replace")} if kind != "lossy bytes" else None
    single = {token for token in table if len(token) == 1}
    text = "".join(pieces)
    tokens = Student(folder, CHATML).tokenise([""], [text])[0]
    spelt = b"".join(table[id_] for id_, bad in zip(tokens.ids.tolist(), tokens.is_unknown, strict=True) if not bad)
    expected = [
        each
        for each in text
        if (each in known if known is not None else all(bytes([byte]) in single for byte in each.encode()))
    ]
    assert spelt.decode() == "".join(expected)


def test_unknown_tokens_are_told_and_left_out_of_cross_entropy(
    tmp_path_factory: Any, write_raw: Write, tmp_path: Path
) -> None:
    folder = small_vocabulary(tmp_path_factory.getbasetemp(), "bpe")
    rows = [raw_row(n, [b"na", "ï".encode(), b"ve"], "naïve".encode(), other=b"t") for n in range(2)]
    found, summary = projected(rows, write_raw, folder, tmp_path)
    unknown = [row for row in found[0] if not row["in_ce"]]
    assert [row["teacher_sample_id"] for row in unknown] == [0]
    assert 0 not in masses(unknown[0])  # neither does KD teach it: its mass is in other
    assert math.exp(unknown[0]["other_logprob"]) == pytest.approx(0.75, rel=1e-3)
    assert summary["unknown_tokens"] == 2
    assert summary["warnings"][0].startswith("2 tokens stand for characters that the student's tokenizer has no token")
    data = KDTraceDataset(tmp_path / "data")
    batch = data.batch([0])
    learnt = batch["input_ids"][response_mask(batch)]
    assert 0 not in learnt
    assert len(learnt) == len(found[0]) - 1
    taught, summary = projected(rows, write_raw, folder, tmp_path, unknown_in_ce=True)
    assert all(row["in_ce"] for row in taught[0])
    assert "cross-entropy teaches them" in summary["warnings"][0]


def test_nothing_is_unknown_where_the_unknown_token_is_only_a_name(
    tokenizer_folder: Path, write_raw: Write, tmp_path: Path
) -> None:
    """GPT-2's and GPT-4o's files call their end of text ``unk_token``."""
    folder = tmp_path / "named"
    tokenizer = load_tokenizer(tokenizer_folder)
    tokenizer.unk_token = "<|im_end|>"
    tokenizer.save_pretrained(folder)
    found, summary = projected(
        [raw_row(n, ["🦄 naïve".encode()], "🦄 naïve".encode()) for n in range(2)], write_raw, folder, tmp_path
    )
    assert all(row["in_ce"] for rows in found.values() for row in rows)
    assert found[0][-1]["teacher_sample_text"] == b"<|im_end|>"
    assert (summary["unknown_tokens"], summary["warnings"]) == (0, [])


def test_metadata_names_template_and_tokenizer(tokenizer_folder: Path, write_raw: Write, tmp_path: Path) -> None:
    projected([raw_row(n, [b"Yes"], b"Yes") for n in range(2)], write_raw, tokenizer_folder, tmp_path)
    file = tmp_path / "data" / "kd_shard_000.parquet"
    metadata = read_metadata(pq.read_schema(str(file)), file)
    assert metadata is not None
    assert metadata.version == 2
    assert metadata.template == {"sha256": hashlib.sha256(CHATML.encode()).hexdigest(), "clock": None}
    identity = tokenizer_digests(tokenizer_folder)
    assert metadata.tokenizer == {"ids": identity.ids, "cutting": identity.cutting}


def test_version_1_is_still_read(tokenizer_folder: Path, write_raw: Write, tmp_path: Path) -> None:
    """Without the column and the two records; nothing is missed, and nothing is left out."""
    rows, _ = projected([raw_row(n, [b"Yes"], b"Yes") for n in range(2)], write_raw, tokenizer_folder, tmp_path)
    file = tmp_path / "data" / "kd_shard_000.parquet"
    new = KDTraceDataset(file, tokenizer_folder=tokenizer_folder).batch([0, 1])
    table = pq.read_table(str(file)).drop_columns(["in_ce"])
    record = json.loads(table.schema.metadata[b"bitnet_kd"])
    del record["template"], record["tokenizer"]
    record["version"] = 1
    pq.write_table(table.replace_schema_metadata({"bitnet_kd": json.dumps(record)}), str(file))
    old = KDTraceDataset(file, tokenizer_folder=tokenizer_folder)
    assert old.lacking == ()
    for name, column in old.batch([0, 1]).items():
        np.testing.assert_array_equal(column.numpy(), new[name].numpy())
    assert len(rows) == 2


def test_a_tokenizer_that_cuts_otherwise(
    random_raw: tuple[Path, list[dict[str, Any]]], write_raw: Write, tokenizer_folder: Path, tmp_path: Path
) -> None:
    """Same ids, another pre-tokenizer: a teacher's is told, and the traces' own is refused."""
    record = json.loads((tokenizer_folder / "tokenizer.json").read_text())
    record["pre_tokenizer"]["add_prefix_space"] = True
    other = tmp_path / "other"
    other.mkdir()
    (other / "tokenizer.json").write_text(json.dumps(record))
    write_raw(
        tmp_path / "raw2" / "shard_000.parquet", random_raw[1], teacher={"model": "s", "model_folder": str(other)}
    )
    summary = project(tmp_path / "raw2", tmp_path / "data", tokenizer_folder, ProjectConfig(), seed=0)
    assert "has the teacher's ids, but cuts text otherwise" in summary["warnings"][0]
    assert len(KDTraceDataset(tmp_path / "data", tokenizer_folder=tokenizer_folder)) == 10
    with pytest.raises(CoreError, match=r"has the traces' ids, but cuts text otherwise: .*  → set project\.tokenizer"):
        KDTraceDataset(tmp_path / "data", tokenizer_folder=other)


def test_by_id_the_students_template_is_the_teachers(
    random_raw: tuple[Path, list[dict[str, Any]]], write_raw: Write, tokenizer_folder: Path, tmp_path: Path
) -> None:
    """Prompts taken by id went through the teacher's: a student that is asked through another has them anew."""
    theirs, others = tmp_path / "theirs.jinja", tmp_path / "others.jinja"
    theirs.write_text(CHATML)
    others.write_text(CHATML + "!")

    def go(rows: list[dict[str, Any]], **config: Any) -> dict[str, Any]:
        teacher = {
            "model": "s", "tokenizer_sha256": tokenizer_identity(tokenizer_folder)[0],
            "template_sha256": hashlib.sha256(CHATML.encode()).hexdigest(),
        }  # fmt: skip
        write_raw(tmp_path / "raw2" / "shard_000.parquet", rows, teacher=teacher)
        settings = ProjectConfig(**config)
        return project(tmp_path / "raw2", tmp_path / "data", tokenizer_folder, settings, seed=0)

    _, rows = random_raw
    assert go(rows, chat_template=str(theirs))["projection"]["path"] == "identity"
    anew = go(rows, chat_template=str(others))
    assert anew["projection"]["path"] == "bytes"
    assert "others.jinja): they are written through the student's" in " ".join(anew["warnings"])
    texts = [row | {"messages": "[]", "prompt_ids": []} for row in rows]
    assert go(texts, chat_template=str(others))["projection"]["path"] == "identity"
