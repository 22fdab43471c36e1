"""`bitnet push` through the real library, against a Hub on the loopback."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from huggingface_hub import DatasetCard, ModelCard

from bitnet_cli.main import cli
from bitnet_core.traces.schema import KD_VERSION, KDMetadata
from bitnet_core.traces.validate_shards import validate_traces
from bitnet_core.traces.write_shards import kd_table, write_kd_shard
from loopback.hub_server import TOKEN, HubServer, own_hub

MANIFEST = """
[teacher]
kind = "local"
model = "org/teacher@{commit}"
[student]
init_from = "teacher"
"""
SCORES = {
    "student": {"value": 1.5, "interval_95": [1.25, 1.75], "items": 6},
    "teacher": {"value": 0.0, "interval_95": None, "items": 6},
}
EVALUATION = {
    "checkpoint": "step_4",
    "split": "test",
    "heldout_kl": 1.5,
    "unigram_kl": 3.0,
    "benchmarks": {"heldout": {"scores": {"kl": {"unit": "nats per token"} | SCORES}}},
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.chdir(tmp_path)
    with own_hub(monkeypatch, tmp_path / "cache") as server:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("SKIP_EXTERNAL", "0")
        server.add("org/teacher", {"README.md": b"---\nlicense: apache-2.0\n---\n"})
        yield server


@pytest.fixture
def run(hub: HubServer, tmp_path: Path) -> Path:
    """A run folder as far as a push reads it."""
    folder = tmp_path / "runs/tea"
    write(
        folder / "manifest.resolved.toml",
        MANIFEST.format(commit=hub.repositories["models", "org/teacher"].refs["main"]),
    )
    write(folder / "reports/mini_evaluation_report.json", json.dumps(EVALUATION))
    for name in ("student-tq2_0.gguf", "hf/model.safetensors", "hf/README.md", "packed/model.safetensors", "mine.txt"):
        write(folder / "exports" / name, f"{name} " * 200)
    kinds = {"student-tq2_0.gguf": "gguf", "hf": "hf", "packed": "packed"}
    entries = {name: {"kind": kind, "run": "..", "checkpoint": "step_4"} for name, kind in kinds.items()}
    write(folder / "exports/exports.json", json.dumps({"format": 1, "exports": entries}))
    return folder


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_traces(folder: Path) -> Path:
    """A shard of four rows that names this machine's folder of the teacher."""
    import numpy as np

    raw: dict[str, Any] = {"teacher": {"model": "tea", "model_folder": "/home/somebody/teacher"}, "version": 1}
    projection = {"path": "identity", "id": "1", "seed": 0, "holdout_fraction": 0.0}
    metadata = KDMetadata(k=2, vocab_size=9, tokenizer_sha256="0" * 64, raw=raw, projection=projection)
    rows = 4
    columns = {
        "prompt_idx": np.zeros(rows, "i8"), "sample_idx": np.zeros(rows, "i4"), "step_idx": np.arange(rows, dtype="i4"),
        "teacher_sample_id": np.full(rows, 3, "i4"), "other_logprob": np.full(rows, np.log(0.25), "f4"),
        "is_struct_token": np.zeros(rows, bool), "teacher_sample_text": pa.array([b"a"] * rows),
        "is_prompt": np.arange(rows) == 0, "has_kd": np.arange(rows) > 0,
        "sample_logprob": np.full(rows, np.log(0.5), "f4"),
        "split": pa.array(["train"] * rows).dictionary_encode(),
    }  # fmt: skip
    columns["other_logprob"][0] = 0.0
    ids = np.tile(np.array([3, 4], "i4"), (rows, 1))
    logprobs = np.log(np.tile(np.array([0.5, 0.25], "f2"), (rows, 1)))
    ids[0], logprobs[0] = 0, -np.inf
    file = folder / "data/kd_shard_000.parquet"
    file.parent.mkdir()
    write_kd_shard(file, kd_table(columns, ids, logprobs), metadata)
    return file


def push(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["push", "runs/tea", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def card(hub: HubServer, repo: str) -> ModelCard:
    return ModelCard(hub.files(repo)["README.md"].decode())


def test_the_exports_arrive_with_a_card(hub: HubServer, run: Path) -> None:
    code, output = push("me/tea")
    assert code == 0, output
    assert f"{hub.url}/me/tea  (private)" in output
    assert hub.repositories["models", "me/tea"].private
    assert sorted(hub.files("me/tea")) == [
        ".gitattributes", "README.md", "model.safetensors", "packed/model.safetensors", "student-tq2_0.gguf",
    ]  # fmt: skip
    assert hub.files("me/tea")["model.safetensors"] == (run / "exports/hf/model.safetensors").read_bytes()
    found = card(hub, "me/tea")
    assert (found.data.base_model, found.data.license) == ("org/teacher", "apache-2.0")
    (score,) = found.data.eval_results or []
    assert (score.metric_type, score.metric_value, score.dataset_split) == ("kl", 1.5, "test")
    assert "| heldout | kl | 1.5 (1.25 to 1.75) | 0 |" in found.text
    assert "org/teacher: apache-2.0, as its card on the Hub says." in found.text
    assert str(run) not in found.content


def test_a_dry_run_shows_what_would_be_sent_and_sends_nothing(hub: HubServer, run: Path, tmp_path: Path) -> None:
    write_traces(run)
    code, output = push("me/tea", "--traces", "me/tea-traces", "--public", "--license", "mit", "--dry-run")
    assert code == 0, output
    assert f"{hub.url}/me/tea  (public model)" in output
    assert f"{hub.url}/datasets/me/tea-traces  (public dataset)" in output
    assert "license: mit" in output
    assert "bytes  student-tq2_0.gguf" in output
    assert list(hub.repositories) == [("models", "org/teacher")]
    assert {method for method, _, _ in hub.requests} == {"GET"}
    push("me/tea", "--license", "mit")
    shown = output.partition("--- README.md of me/tea\n")[2].partition("\n---\nnothing was sent")[0]
    assert shown.replace("datasets:\n- me/tea-traces\n", "").replace("| traces | me/tea-traces |\n", "") == str(
        card(hub, "me/tea")
    )


def test_traces_come_without_the_folders_of_this_machine(hub: HubServer, run: Path, tmp_path: Path) -> None:
    file = write_traces(run)
    before = file.read_bytes()
    code, output = push("me/tea", "--traces", "team/tea-traces")
    assert code == 0, output
    assert card(hub, "me/tea").data.datasets == ["team/tea-traces"]
    sent = hub.files("team/tea-traces", "datasets")
    (tmp_path / "got").mkdir()
    got = tmp_path / "got/kd_shard_000.parquet"
    got.write_bytes(sent["data/kd_shard_000.parquet"])
    assert b"/home/somebody" in before
    assert b"/home/somebody" not in got.read_bytes()
    assert file.read_bytes() == before
    assert pq.read_table(got).equals(pq.read_table(file))
    validate_traces(got.parent)
    record = json.loads(pq.read_schema(got).metadata[b"bitnet_kd"])
    assert (record["version"], record["raw"]["teacher"]) == (KD_VERSION, {"model": "tea"})
    about = DatasetCard(sent["README.md"].decode())
    assert about.data.to_dict()["configs"] == [{"config_name": "default", "data_files": "data/*.parquet"}]
    assert "| token positions | 4 |" in about.text
    assert "What org/teacher said" in about.text


def test_scores_of_another_checkpoint_are_left_out(hub: HubServer, run: Path) -> None:
    write(run / "reports/mini_evaluation_report.json", json.dumps(EVALUATION | {"checkpoint": "step_2"}))
    assert push("me/tea")[0] == 0
    assert card(hub, "me/tea").data.eval_results is None
    assert "Not measured: the run has no evaluation of step\\_4." in card(hub, "me/tea").text


@pytest.mark.parametrize(
    ("manifest", "options", "base", "said"),
    [
        ('[teacher]\nkind = "openai"\nmodel = "big"', (), None, "big by the API openai: the terms of that service."),
        ('[teacher]\nkind = "local"\nmodel = "/home/me/tea"', (), None, "tea: its licence is not stated here"),
        ('[teacher]\nkind = "local"\nmodel = "/home/me/tea"', ("--base-model", "org/teacher"), "org/teacher",
         "org/teacher: apache-2.0"),
        ("", (), None, "learned from its teacher"),
        ('[teacher]\nkind = "openai"\nmodel = "big"\n[student]\ninit_from = "org/teacher"', (), "org/teacher",
         "org/teacher: apache-2.0"),
    ],
)  # fmt: skip
def test_what_it_comes_from(
    hub: HubServer, run: Path, manifest: str, options: tuple[str, ...], base: str | None, said: str
) -> None:
    write(run / "manifest.resolved.toml", manifest)
    code, output = push("me/tea", *options)
    assert code == 0
    asks = "note: --base-model ORG/NAME says what tea is on the Hub" in output
    assert asks == ("/home/me" in manifest and not options)
    found = card(hub, "me/tea")
    assert found.data.base_model == base
    assert said in found.text
    assert "/home/me" not in found.content


def test_what_is_wrong_is_told_before_anything_is_created(
    hub: HubServer, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert push("tea") == (
        2, "error: 'tea' has no owner  → write ORG/NAME: your account or organisation, a slash, a name\n"
    )  # fmt: skip
    assert push("me/tea", "--traces", "me/traces")[1].startswith("error: runs/tea: no file kd_shard_*.parquet")
    assert "doesn't belong to others  → choose one that you may write to: me, team" in push("others/tea")[1]
    record = json.loads((run / "exports/exports.json").read_text())
    record["exports"]["hf"]["checkpoint"] = "step_2"
    write(run / "exports/exports.json", json.dumps(record))
    assert "different checkpoints (step_2, step_4)  → make them again with `bitnet export" in push("me/tea")[1]
    (run / "exports/exports.json").unlink()
    assert push("me/tea")[1] == (
        "error: runs/tea has no exports  → make some with `bitnet export runs/tea --to gguf,hf`\n"
    )
    monkeypatch.setenv("SKIP_EXTERNAL", "1")
    assert "SKIP_EXTERNAL=1 bars uploads  → unset it" in push("me/tea")[1]
    assert list(hub.repositories) == [("models", "org/teacher")]
