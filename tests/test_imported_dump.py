"""Somebody else's dump of chat completions, by the commands and manifest of docs/traces.md, to a trained student."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

DOCS = Path(__file__).parents[1] / "docs" / "traces.md"
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
ANSWERS = (
    "The sea was calm — and the café stayed open.",
    '{"name": "Ada", "born": 1815}',
    "猫が好き。 I like cats 🦄!",
    "def f(x):\n    return x ** 2\n",
)


def student_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(ANSWERS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(str(folder))


def entry(raw: bytes, logprob: float, bytes_known: bool) -> dict[str, Any]:
    return {
        "token": raw.decode("utf-8", "replace"),
        "bytes": list(raw) if bytes_known else None,
        "logprob": logprob,
    }


def chat(number: int, kind: str) -> dict[str, Any]:
    """As a server writes it. kind: with bytes, with bytes null, or without log-probabilities."""
    text = ANSWERS[number % len(ANSWERS)]
    known = kind == "bytes"
    # Some servers cut characters across tokens: pieces of five bytes do.
    data = text.encode()
    if known:
        pieces = [data[i : i + 5] for i in range(0, len(data), 5)]
    else:
        pieces = [each.encode() for each in re.findall(r"\W?\w*", text) if each]
    content = [
        entry(piece, math.log(0.6), known)
        | {"top_logprobs": [entry(piece, math.log(0.6), known), entry(b" and", math.log(0.2), known)]}
        for piece in pieces
    ]
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"Question {number}?"}]
    if number % 2:
        turns += [{"role": "assistant", "content": "Which part?"}, {"role": "user", "content": "All of it."}]
    choice = {
        "index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text, "refusal": None},
        "logprobs": None if kind == "none" else {"content": content, "refusal": None},
    }  # fmt: skip
    usage = {"prompt_tokens": 12, "completion_tokens": len(pieces)}
    response = {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "model": "big",
        "choices": [choice],
        "usage": usage,
    }
    return {"request": {"model": "big", "messages": turns, "logprobs": True, "top_logprobs": 2}, "response": response}


def bitnet(folder: Path, *arguments: str) -> str:
    command = [str(Path(sys.executable).with_name("bitnet")), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that the page says, done in an empty folder."""
    under = tmp_path_factory.mktemp("dump")
    student_tokenizer(under / "student-tokenizer")
    kinds = ["bytes", "null", "none"] * 6
    lines = [json.dumps(chat(number, kind), ensure_ascii=number % 2 == 0) for number, kind in enumerate(kinds)]
    (under / "dump.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    section = DOCS.read_text(encoding="utf-8").partition("### Train on it")[2]
    (manifest,) = re.findall(r"```toml\n(.*?)```", section, flags=re.DOTALL)
    (under / "imported.toml").write_text(manifest, encoding="utf-8")
    (console,) = re.findall(r"```console\n(.*?)```", section, flags=re.DOTALL)
    commands = re.findall(r"^\$ bitnet (.*)$", console, flags=re.MULTILINE)
    assert len(commands) == 2
    bitnet(under, *commands[0].split())
    small = ["train.steps=2", "train.batch_size=4", "student.hidden_size=64", "student.intermediate_size=64"]
    bitnet(under, *commands[1].split(), *(each for setting in small for each in ("--set", setting)))
    return under


def summary(folder: Path, stage: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / f"runs/imported/stages/{stage}/done.json").read_text())
    return record["summary"]


@pytest.mark.slow
def test_every_answer_is_in_the_traces(folder: Path) -> None:
    rows = pq.read_table(str(folder / "runs/imported/data")).to_pylist()
    texts: dict[int, bytes] = {}
    for row in rows:
        if not row["is_prompt"]:
            texts[row["prompt_idx"]] = texts.get(row["prompt_idx"], b"") + row["teacher_sample_text"]
    assert [texts[n].removesuffix(b"<|end|>").decode() for n in range(18)] == [ANSWERS[n % 4] for n in range(18)]
    with_kd = {row["prompt_idx"] for row in rows if row["has_kd"]}
    assert with_kd == {n for n in range(18) if n % 3 != 2}  # the others say nothing of probabilities
    prompts = b"".join(row["teacher_sample_text"] for row in rows if row["is_prompt"] and row["prompt_idx"] == 1)
    assert prompts.decode() == (
        "<|system|>Be brief.<|end|><|user|>Question 1?<|end|><|assistant|>Which part?<|end|><|user|>All of it.<|end|>"
        "<|assistant|>"
    )
    project = summary(folder, "project")
    assert (project["completions"], project["empty_completions"], project["texts_differing"]) == (18, 0, 0)
    assert project["projection"]["path"] == "bytes"


@pytest.mark.slow
def test_the_student_is_trained(folder: Path) -> None:
    train = summary(folder, "train")
    assert train["steps"] == 2
    assert 0 < train["last"]["kd"] < train["last"]["loss"]
    assert (folder / "runs/imported/checkpoints/step_2/model.safetensors").stat().st_size > 0
    assert "imported" in (folder / "runs/imported/report.md").read_text()
    assert bitnet(folder, "traces", "validate", "runs/imported").endswith("no problem\n")
