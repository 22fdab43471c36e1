"""A student that is served is the next one's teacher: real processes on 127.0.0.1, and the local model beside them."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import openai
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from bitnet_core.model import BitNetKDEConfig, BitNetKDEForCausalLM
from bitnet_core.runtime.open import open_runtime
from bitnet_core.runtime.sampling import Drawn
from bitnet_core.runtime.torch_runtime import TorchRuntime
from bitnet_core.ternary.bitlinear import ternary_layers

KEY = "sk-fake-canary-for-a-local-server"
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "
QUESTIONS = ("What is tea?", "Repeat: naïve 漢字 🙂", "Name a sea.")


@attrs.frozen
class Served:
    url: str
    folder: Path
    process: "subprocess.Popen[str]"


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level student with weights that say something: half of its tokens are parts of characters."""
    folder = tmp_path_factory.mktemp("runs") / "first-student"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(["tea and more tea for the two of us, 漢字 too"] * 3, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", chat_template=TEMPLATE).save_pretrained(
        folder
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        model = BitNetKDEForCausalLM(
            BitNetKDEConfig(
                vocab_size=tokenizer.get_vocab_size(),
                hidden_size=128,
                intermediate_size=256,
                num_hidden_layers=2,
                num_attention_heads=2,
                eos_token_id=0,
                max_position_embeddings=256,
            )
        )
        model.model.norm.weight.mul_(8)  # logits with a spread of some 2 nats
        for _, layer in ternary_layers(model):
            layer.fit_scale()
    model.save_pretrained(folder)
    return folder


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[Served]:
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("bitnet")), "serve", str(folder), "--port", "0", *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"SERVED_KEY": KEY},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"(http://127\.0\.0\.1:\d+/v1)", line)
        assert found, (line, process.stderr.read() if process.stderr and process.poll() is not None else "")
        yield Served(found[1], folder, process)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)


@pytest.fixture(scope="module")
def served(student: Path) -> Iterator[Served]:
    with serving(student, "--api-key-env", "SERVED_KEY") as running:
        yield running


@pytest.fixture(scope="module")
def run(bitnet: Any, served: Served, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The next run's folder: its teacher is the served student."""
    root = tmp_path_factory.mktemp("next")
    rows = [{"id": f"q{n}", "prompt": question} for n, question in enumerate(QUESTIONS)]
    (root / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "next.toml").write_text(f"""
manifest_version = 1
[run]
name = "next"
stages = ["storage", "collect", "project"]
[store]
kind = "local"
root = "."
[teacher]
kind = "openai-compatible"
base_url = "{served.url}"
model = "first-student"
api_key_env = "SERVED_KEY"
[collect]
prompts = "prompts.jsonl"
top_k = 20
max_new_tokens = 24
samples_per_prompt = 2
temperature = 0.7
[project]
tokenizer = "{served.folder}"
""")
    done = bitnet("run", str(root / "next.toml"), SERVED_KEY=KEY)
    assert done.returncode == 0, done.stdout + done.stderr
    return root / "next"


@pytest.mark.slow
def test_the_probe_trusts_it(run: Path) -> None:
    verdict = json.loads((run / "reports/teacher_probe.json").read_text())
    assert verdict["trusted_for_kd"], verdict["reasons"]
    assert (verdict["temperature"], verdict["top_p"], verdict["token_bytes"]) == ("before", "before", "valid")
    assert verdict["max_top_logprobs"] == 20
    assert verdict["repeat_kl"] == pytest.approx(0.0, abs=1e-6)
    assert verdict["sampled_among"] > 0.5


@pytest.mark.slow
def test_the_traces_hold_the_local_models_log_probabilities(run: Path, student: Path) -> None:
    rows = pq.read_table(run / "raw/shard_000.parquet").to_pylist()
    assert len(rows) == 2 * len(QUESTIONS)
    positions = 0
    with open_runtime(student) as runtime:
        assert isinstance(runtime, TorchRuntime)
        id_of = {raw: id_ for id_, raw in enumerate(runtime.raw) if raw}
        for row in rows:
            ids = [id_of[raw] for raw in row["token_bytes"]]
            expected_TV = distributions(runtime, json.loads(row["messages"]), ids)
            own = [float(expected_V[id_]) for expected_V, id_ in zip(expected_TV, ids, strict=True)]
            np.testing.assert_allclose(row["token_logprobs"], own, atol=1e-3)
            assert row["candidate_counts"] == [20] * len(ids)
            told = np.array(row["candidate_logprobs"]).reshape(-1, 20)
            np.testing.assert_allclose(told, expected_TV.topk(20).values, atol=1e-3)
            named = [[id_of[raw] for raw in row["candidate_bytes"][t * 20 : t * 20 + 20]] for t in range(len(ids))]
            np.testing.assert_allclose(told, expected_TV.gather(1, torch.tensor(named)), atol=1e-3)
            assert b"".join(row["token_bytes"]) == row["text"]
            positions += len(ids)
    assert positions > 60


def distributions(runtime: TorchRuntime, messages: Any, ids: Sequence[int]) -> Tensor:
    """log p [T, V] of the token before each of `ids`, which are forced; no temperature."""
    rows, forced = [], iter(ids)

    def read(logits_V: Tensor) -> Drawn:
        rows.append(logits_V.double().log_softmax(-1))
        return Drawn(next(forced))

    for _ in runtime._tokens(runtime.encode(messages), len(ids), read):
        pass
    return torch.stack(rows)


@pytest.mark.slow
def test_some_tokens_are_parts_of_characters_and_keep_their_bytes(run: Path) -> None:
    rows = pq.read_table(run / "raw/shard_000.parquet").to_pylist()
    parts = 0
    for row in rows:
        for raw in row["token_bytes"]:
            try:
                raw.decode()
            except UnicodeDecodeError:
                parts += 1
    assert parts > 3
    assert not any(row["token_bytes"] is None or np.isnan(row["token_logprobs"]).any() for row in rows)


@pytest.mark.slow
def test_the_same_tokenizer_takes_every_position_over(run: Path) -> None:
    kd = pq.read_table(run / "data/kd_shard_000.parquet").to_pylist()
    answers = [row for row in kd if not row["is_prompt"]]
    assert sum(row["has_kd"] for row in answers) > 0.8 * len(answers)


@pytest.mark.slow
def test_streams_hold_what_whole_answers_hold(served: Served) -> None:
    client = openai.OpenAI(base_url=served.url, api_key=KEY, max_retries=0)
    asked: Any = {
        "model": "first-student", "messages": [{"role": "user", "content": QUESTIONS[1]}], "logprobs": True,
        "top_logprobs": 3, "seed": 11, "max_tokens": 20,
    }  # fmt: skip
    whole = client.chat.completions.create(**asked)
    events = list(client.chat.completions.create(**asked, stream=True))
    content = whole.choices[0].logprobs.content
    assert "".join(event.choices[0].delta.content or "" for event in events) == whole.choices[0].message.content
    assert content == [
        token for event in events if event.choices[0].logprobs for token in event.choices[0].logprobs.content
    ]
    assert len(content) == whole.usage.completion_tokens
    legacy = client.completions.create(model="first-student", prompt="tea and", logprobs=2, max_tokens=6, temperature=0)
    assert len(legacy.choices[0].logprobs.token_logprobs) == legacy.usage.completion_tokens
    with pytest.raises(openai.BadRequestError, match="the model's context 256  → make it shorter"):
        client.completions.create(model="first-student", prompt="tea " * 400, max_tokens=1)
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    client.close()


@pytest.mark.slow
def test_ctrl_c_ends_it_clean_even_in_the_middle_of_an_answer(student: Path) -> None:
    with serving(student) as running:
        client = openai.OpenAI(base_url=running.url, api_key="none", max_retries=0)
        stream = client.chat.completions.create(
            model="first-student", messages=[{"role": "user", "content": "tea"}], stream=True, max_tokens=200, seed=1,
            logit_bias={},
        )  # fmt: skip
        next(iter(stream))
        running.process.send_signal(signal.SIGINT)
        _, errors = running.process.communicate(timeout=30)
        client.close()
    assert running.process.returncode == 0, errors
    assert "stopped" in errors
    assert "Traceback" not in errors
    assert KEY not in errors
