"""The whole job with a server as the teacher: llama.cpp's own, over HTTP, and a student with another tokenizer."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks.real_tokenizers import tokenizer_folder
from bitnet_providers.teachers.local.model_source import find_embedded
from loopback import llamacpp_server

CANARY = "sk-canary-not-a-key-81c4e02f"
TINY = {
    "baseline.max_prompts": 2, "baseline.max_new_tokens": 8, "collect.max_prompts": 12, "collect.max_new_tokens": 16,
    "project.holdout_fraction": 0.25, "student.hidden_size": 64, "student.intermediate_size": 128,
    "student.num_hidden_layers": 2, "student.num_attention_heads": 4, "student.num_key_value_heads": 2,
    "train.steps": 4, "train.batch_size": 4, "train.warmup_steps": 1, "evaluate.max_prompts": 2,
    "evaluate.max_new_tokens": 8, "evaluate.bootstrap_samples": 100,
}  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    pytest.importorskip("xllamacpp")
    with llamacpp_server.running(find_embedded(), n_ctx=2048, n_parallel=4, api_keys=[CANARY]) as url:
        yield f"{url}/v1"


@pytest.fixture(scope="module")
def run(bitnet: Any, server: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The run folder, and everything that the command printed: once with a wrong key, then to the end."""
    root = tmp_path_factory.mktemp("drive")
    template = root / "plain.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}\n{% endfor %}")
    settings = {**TINY, "teacher.base_url": server, "teacher.api_key_env": "SERVER_KEY",
                "project.chat_template": str(template)}  # fmt: skip
    changes = [part for name, value in settings.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    environment = {"DRIVE_ROOT": str(root), "STUDENT_TOKENIZER": str(tokenizer_folder("deepseek", root)),
                   "OPENAI_LOG": "debug"}  # fmt: skip
    outputs = []
    for key, code in ((CANARY + "-wrong", 2), (CANARY, 0)):
        result = bitnet("run", "manifests/local-server.toml", *changes, SERVER_KEY=key, **environment)
        outputs.append(result.stdout + result.stderr)
        assert result.returncode == code, outputs[-1]
    assert "check the key in the environment variable SERVER_KEY" in outputs[0]
    return root / "local-server", "".join(outputs)


@pytest.mark.slow
def test_the_pipeline_ends_in_a_report(run: tuple[Path, str]) -> None:
    folder, _ = run
    figures = json.loads((folder / "reports/mini_evaluation_report.json").read_text())
    assert 0 < figures["heldout_kl"] < figures["untrained_kl"]
    assert (folder / "report.html").stat().st_size > 0
    kd = pq.read_table(folder / "data/kd_shard_000.parquet").to_pylist()
    answers = [row for row in kd if not row["is_prompt"]]
    assert sum(row["has_kd"] for row in answers) > 0.7 * len(answers)


@pytest.mark.slow
def test_what_the_server_said_is_in_the_raw_shard(run: tuple[Path, str]) -> None:
    raw = pq.read_table(run[0] / "raw/shard_000.parquet").to_pylist()
    assert len(raw) == 12
    for row in raw:
        assert b"".join(row["token_bytes"]) == row["text"]
        assert set(row["candidate_counts"]) <= {0, 20}
        assert np.exp(np.array(row["candidate_logprobs"][:20], np.float64)).sum() <= 1.0 + 1e-4
        assert json.loads(row["usage"])["decode_s"] > 0


@pytest.mark.slow
def test_a_key_is_in_no_file_and_no_output(run: tuple[Path, str]) -> None:
    folder, output = run
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []
    assert CANARY not in output
