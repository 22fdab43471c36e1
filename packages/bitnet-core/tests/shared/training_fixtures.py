"""KD traces of a made-up teacher that a tiny student can learn: each token is likely to be followed by the next one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bitnet_core.config.student import StudentConfig
from bitnet_core.config.train import TrainConfig
from bitnet_core.traces.schema import KDMetadata
from bitnet_core.traces.tokenizer import tokenizer_identity
from bitnet_core.traces.write_shards import kd_table, write_kd_shard
from bitnet_core.training import loop
from bitnet_core.training.loop import OnProgress
from training_process import job, quiet

VOCABULARY = 32
K = 4
DOCUMENTS = 24
LENGTH = 20
PROMPT = 3
TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"


@attrs.frozen
class Traces:
    data: Path
    tokenizer: Path


@pytest.fixture(scope="session")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Traces:
    folder = tmp_path_factory.mktemp("traces")
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w1", pad_token="w1", unk_token="w0")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder / "tokenizer")
    write_shard(folder / "data", tokenizer_identity(folder / "tokenizer"))
    return Traces(folder / "data", folder / "tokenizer")


@pytest.fixture(scope="session")
def sequence_traces(traces: Traces, tmp_path_factory: pytest.TempPathFactory) -> Traces:
    """Answers without any teacher distribution, as collected with top_k = 0."""
    data = tmp_path_factory.mktemp("sequence_traces") / "data"
    write_shard(data, tokenizer_identity(traces.tokenizer), with_kd=False)
    return Traces(data, traces.tokenizer)


@pytest.fixture(scope="session")
def other_traces(traces: Traces, tmp_path_factory: pytest.TempPathFactory) -> Traces:
    """The same documents from another projection."""
    data = tmp_path_factory.mktemp("other_traces") / "data"
    write_shard(data, tokenizer_identity(traces.tokenizer), projection="other")
    return Traces(data, traces.tokenizer)


def write_shard(folder: Path, identity: tuple[str, int], *, with_kd: bool = True, projection: str = "test") -> None:
    sha256, vocabulary = identity
    rng = np.random.default_rng(0)
    lengths = rng.integers(LENGTH // 2, LENGTH, DOCUMENTS)
    document = np.repeat(np.arange(DOCUMENTS), lengths)
    step = np.concatenate([np.arange(length) for length in lengths])
    tokens = (rng.integers(2, VOCABULARY, DOCUMENTS)[document] + step) % VOCABULARY
    rows = len(tokens)
    ids = (tokens[:, None] + np.arange(K)) % VOCABULARY  # the token itself is the likeliest, then its successors
    probabilities = np.array([0.7, 0.1, 0.05, 0.05])
    is_prompt = step < PROMPT
    has_kd = ~is_prompt & with_kd
    logprobs = np.where(has_kd[:, None], np.log(probabilities), -np.inf).astype(np.float16)
    columns = {
        "prompt_idx": document.astype(np.int64),
        "sample_idx": np.zeros(rows, np.int32),
        "step_idx": step.astype(np.int32),
        "teacher_sample_id": tokens.astype(np.int32),
        "other_logprob": np.where(has_kd, np.log(0.1), 0.0).astype(np.float32),
        "is_struct_token": tokens % 5 == 0,
        "teacher_sample_text": [f"w{token}".encode() for token in tokens],
        "is_prompt": is_prompt,
        "has_kd": has_kd,
        "sample_logprob": np.where(is_prompt, np.nan, np.log(0.7)).astype(np.float32),
        "split": ["heldout" if number % 4 == 0 else "train" for number in document],
    }
    metadata = KDMetadata(
        k=K, vocab_size=vocabulary, tokenizer_sha256=sha256, raw={}, projection={"path": "identity", "id": projection}
    )
    folder.mkdir(parents=True)
    write_kd_shard(
        folder / "kd_shard_000.parquet",
        kd_table(columns, np.where(has_kd[:, None], ids, 0).astype(np.int32), logprobs),
        metadata,
    )


@pytest.fixture
def student() -> StudentConfig:
    return StudentConfig(
        init_from="", hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip


@pytest.fixture
def settings() -> TrainConfig:
    return TrainConfig(
        steps=12, batch_size=4, learning_rate=5e-3, warmup_steps=2, flip_fraction=0.5, checkpoint_every=5,
        validate_every=4, log_every=1, precision="fp32",
    )  # fmt: skip


@pytest.fixture(scope="session")
def bpe_traces(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Traces:
    """The same documents under a byte-level tokenizer, which GGUF has too."""
    data = tmp_path_factory.mktemp("bpe_traces") / "data"
    write_shard(data, tokenizer_identity(tokenizer_folder))
    return Traces(data, tokenizer_folder)


@pytest.fixture
def run(traces: Traces, student: StudentConfig, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """One training with `settings` into ``tmp_path / folder``; `changes` go over the fields of its `Job`."""

    def train(folder: str, settings: TrainConfig, on_progress: OnProgress = quiet, **changes: Any) -> dict[str, Any]:
        plain = job(tmp_path / folder, traces.data, traces.tokenizer, student, settings)
        return loop.train(attrs.evolve(plain, **changes), on_progress)

    return train
