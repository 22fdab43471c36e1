"""`bitnet traces`: what it prints and its exit codes; what it finds is tested in the libraries."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner

from bitnet_cli.commands.traces import position_text, stats_text
from bitnet_cli.main import cli
from bitnet_core.traces.schema import KDMetadata
from bitnet_core.traces.show_position import Candidate, ShownPosition
from bitnet_core.traces.write_shards import kd_table, write_kd_shard

METADATA = KDMetadata(k=2, vocab_size=9, tokenizer_sha256="0" * 64, raw={}, projection={"path": "identity"})


def bitnet(*arguments: Any) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write(tmp_path / "run" / "data" / "kd_shard_000.parquet", [0.0, -1.2])
    return tmp_path / "run"


def write(file: Path, other: list[float], metadata: KDMetadata = METADATA) -> None:
    """One document of two tokens; the second has two candidates, of 0.5 and 0.2."""
    columns = {
        "prompt_idx": np.zeros(2, np.int64),
        "sample_idx": np.zeros(2, np.int32),
        "step_idx": np.arange(2, dtype=np.int32),
        "teacher_sample_id": np.array([1, 2], np.int32),
        "other_logprob": np.array(other, np.float32),
        "is_struct_token": np.array([False, True]),
        "teacher_sample_text": pa.array([b"a", b"{"]),
        "is_prompt": np.array([True, False]),
        "has_kd": np.array([False, True]),
        "sample_logprob": np.array([np.nan, -0.7], np.float32),
        "split": pa.array(["train"] * 2).dictionary_encode(),
    }
    logprobs = np.array([[-np.inf, -np.inf], np.log([0.5, 0.2])], np.float16)
    write_kd_shard(file, kd_table(columns, np.array([[0, 0], [2, 3]], np.int32), logprobs), metadata)


def test_validate(run: Path) -> None:
    assert bitnet("traces", "validate", run) == (0, "1 shards, 2 positions: no problem\n", "")
    file = run / "data" / "kd_shard_000.parquet"
    write(file, [0.0, -0.1])
    code, out, err = bitnet("traces", "validate", run)
    assert (code, out) == (2, "1 shards, 2 positions: 1 problem\n")
    assert err.startswith(f"error: {file}: row group 0: 1 row with a mass over 1 (up to 1.60")
    assert "→ delete it and run the project stage" in err
    code, out, _ = bitnet("traces", "validate", run, "--json")
    assert (code, json.loads(out)["problems"][0]["row_group"]) == (2, 0)


def test_raw_shards_are_read_too(run: Path, tmp_path: Path) -> None:
    content = [{"token": "a", "bytes": [97], "logprob": -0.5, "top_logprobs": []}]
    choice = {"message": {"content": "a"}, "logprobs": {"content": content}, "finish_reason": "stop"}
    dump = tmp_path / "dump.jsonl"
    dump.write_text(json.dumps({"messages": [{"role": "user", "content": "x"}], "model": "m", "choices": [choice]}))
    assert bitnet("traces", "import", dump, "--out", run / "raw")[0] == 0
    raw, kd = "1 raw shards, 1 completions: no problem\n", "1 shards, 2 positions: no problem\n"
    assert bitnet("traces", "validate", run) == (0, raw + kd, "")
    (file,) = (run / "raw").glob("shard_*.parquet")
    for where in (run / "raw", file):
        assert bitnet("traces", "validate", where) == (0, raw, "")
    code, out, _ = bitnet("traces", "stats", run, "--json")
    assert (code, json.loads(out)["raw"]["tokens"], json.loads(out)["kd_positions"]) == (0, 1, 1)
    lines = {" ".join(line.split()) for line in bitnet("traces", "stats", run / "raw")[1].splitlines()}
    assert {"model m", "completions 1", "finish reasons stop 1", "mean topk mass -"} <= lines
    file.write_bytes(file.read_bytes()[:-9])
    code, out, err = bitnet("traces", "validate", run, "--json")
    assert (code, len(json.loads(out)["raw"]["problems"]), json.loads(out)["problems"]) == (2, 1, [])
    code, _, err = bitnet("traces", "validate", file)
    assert (code, err.startswith(f"error: {file}: cannot be read as Parquet")) == (2, True)


def test_merge(run: Path, tmp_path: Path) -> None:
    content = [{"token": "a", "bytes": [97], "logprob": -0.5, "top_logprobs": []}]
    choice = {"message": {"content": "a"}, "logprobs": {"content": content}, "finish_reason": "stop"}
    dump = tmp_path / "dump.jsonl"
    dump.write_text(json.dumps({"messages": [{"role": "user", "content": "x"}], "model": "m", "choices": [choice]}))
    for name in ("a", "b"):
        assert bitnet("traces", "import", dump, "--out", tmp_path / name)[0] == 0
    out = tmp_path / "out"
    told = f"2 folders, 1 raw shards: {out}\n  completions: 1\n  duplicates: 1\n"
    assert bitnet("traces", "merge", tmp_path / "a", tmp_path / "b", "--out", out) == (0, told, "")
    code, _, err = bitnet("traces", "merge", tmp_path / "a", run, "--out", tmp_path / "mixed")
    assert (code, err.startswith(f"error: {run}: no shard_*.parquet in it")) == (2, True)
    code, _, err = bitnet("traces", "merge", run, "--out", tmp_path / "kd")  # names no projection
    assert (code, "merge the raw folders" in err) == (2, True)
    file = run / "data" / "kd_shard_000.parquet"
    write(file, [0.0, -1.2], attrs.evolve(METADATA, projection={"path": "identity", "id": "one"}))
    code, out_text, _ = bitnet("traces", "merge", run, "--out", tmp_path / "kd", "--json")
    assert (code, json.loads(out_text)["documents"], json.loads(out_text)["positions"]) == (0, 1, 2)


def test_stats(run: Path) -> None:
    code, out, _ = bitnet("traces", "stats", run)
    assert code == 0
    lines = {" ".join(line.split()) for line in out.splitlines()}
    assert "tokens 2 2 0" in lines
    assert "coverage (KD of response) 100.00% 100.00% -" in lines
    assert "0.3 to 0.5 1 100.0% ████████████████████████████████████████" in lines
    code, out, _ = bitnet("traces", "stats", run, "--json")
    assert json.loads(out)["kd_positions"] == 1


def test_stats_of_a_run_show_the_projections_record(run: Path) -> None:
    record = run / "stages" / "project" / "done.json"
    record.parent.mkdir(parents=True)
    record.write_text('{"summary": {"merged_candidates": 1234, "merged_mass": 0.25}}')
    from bitnet_core.traces.stats import trace_stats

    lines = {" ".join(line.split()) for line in stats_text(trace_stats(run)).splitlines()}
    assert {"merged candidates 1,234", "merged mass 0.25"} <= lines


def test_show_marks_the_token_that_stands_there() -> None:
    shown = ShownPosition(
        file="kd_shard_000.parquet", number=4, prompt_idx=1, sample_idx=0, step_idx=5, split="train", context="a b",
        token_id=7, token=" c", is_struct_token=False, other=0.3, student_other=0.5, student_token=0.01, kl=0.12,
        candidates=(Candidate(2, " d", 0.7, 0.5, False),),
    )  # fmt: skip
    lines = [line.split() for line in position_text(shown).splitlines()]
    assert ["2", "0.7000", "0.5000", "'", "d'"] in lines
    assert ["other", "0.3000", "0.5000"] in lines
    assert ["*", "7", "-", "0.0100", "'", "c'", "(in", "other)"] in lines


def test_import(tmp_path: Path) -> None:
    top = [{"token": "b", "bytes": [98], "logprob": -1.0}]
    content = [{"token": "a", "bytes": [97], "logprob": -0.5, "top_logprobs": top}]
    choice = {"message": {"content": "a"}, "logprobs": {"content": content}, "finish_reason": "stop"}
    dump = tmp_path / "dump.jsonl"
    dump.write_text(json.dumps({"messages": [{"role": "user", "content": "x"}], "model": "m", "choices": [choice]}))
    code, out, _ = bitnet("traces", "import", dump, "--out", tmp_path / "raw")
    assert code == 0
    assert out == f"1 completions, 1 tokens, K = 1: {tmp_path / 'raw'}\n  sampled outside: 1\n"
    code, _, err = bitnet("traces", "import", dump, "--out", tmp_path / "raw")
    assert (code, err.startswith(f"error: {tmp_path / 'raw'}: holds raw shards already")) == (2, True)


@pytest.mark.parametrize("command", [["validate"], ["stats"], ["show", "0"]])
def test_folders_without_traces(tmp_path: Path, command: list[str]) -> None:
    code, _, err = bitnet("traces", command[0], tmp_path, *command[1:])
    assert code == 2
    assert err.startswith(f"error: {tmp_path}: no file kd_shard_*.parquet in it")


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom bitnet_cli.main import cli\n"
        "try:\n    cli(['traces', 'show', '--help'])\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'pyarrow', 'transformers', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
