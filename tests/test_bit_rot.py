"""Flipped bits in what a run has made: `bitnet runs verify` finds each, and so does whoever reads the file."""

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bitnet_cli.commands.stored_runs import verify
from bitnet_cli.main import cli

FLIPS_A_FILE = 4
KINDS = (
    "raw/shard_*.parquet", "raw/journal-*.bin", "raw/ledger-*.jsonl", "data/kd_shard_*.parquet",
    "checkpoints/step_4/model.safetensors", "checkpoints/step_4/training.safetensors",
    "checkpoints/step_4/training.json", "checkpoints/step_4/config.json", "checkpoints/step_4/tokenizer.json",
    "checkpoints/step_4/model.safetensors", "calibration/start/model*.safetensors",
    "reports/mini_evaluation_report.json", "reports/teacher_baseline.json", "report.md",
)  # fmt: skip


def flips(path: Path, seed: int) -> Any:
    """The file with one bit of it flipped, at its ends and at random places; as it was in the end."""
    whole, draw = path.read_bytes(), random.Random(seed)
    last = len(whole) - (2 if path.suffix == ".jsonl" else 1)  # the end of a ledger's last line says nothing
    places = {0, last, *(draw.randrange(last) for _ in range(FLIPS_A_FILE - 2))}
    for at in sorted(places):
        content = bytearray(whole)
        content[at] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        yield at
    path.write_bytes(whole)


@pytest.mark.slow
def test_a_flipped_bit_wherever_it_lies_is_found(tiny_place: Path, tmp_path: Path) -> None:
    run = shutil.copytree(tiny_place / "runs/quickstart", tmp_path / "runs/quickstart")
    assert [each.what for each in verify(run) if each.problems] == []
    found = 0
    for pattern in KINDS:
        paths = sorted(run.glob(pattern))
        assert paths, pattern
        for seed, path in enumerate(paths):
            name = path.relative_to(run).as_posix()
            for at in flips(path, seed):
                problems = [problem for each in verify(run) for problem in each.problems]
                assert problems, (name, at)
                assert any(name in problem or problem.startswith("raw") for problem in problems), (name, at)
                found += 1
    assert found >= 4 * len(KINDS) - 4
    assert [each.what for each in verify(run) if each.problems] == []


@pytest.mark.slow
def test_the_command_names_the_file_and_the_stage_that_reads_it_stops(
    tiny_place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(tiny_place / "runs/quickstart", tmp_path / "runs/quickstart")
    sound = CliRunner().invoke(cli, ["runs", "verify", "quickstart", "--store", "runs"])
    assert (sound.exit_code, "damaged" in sound.output) == (0, False), sound.output
    (shard,) = (run / "data").glob("kd_shard_*.parquet")
    for _ in flips(shard, 1):
        told = CliRunner().invoke(cli, ["runs", "verify", "quickstart", "--store", "runs"])
        assert told.exit_code == 1
        assert f"{shard.relative_to(run)} is not what was written there (its sha256 is another)" in told.output
    (run / "checkpoints/step_4/training.safetensors").unlink()  # it may be deleted to save space
    assert CliRunner().invoke(cli, ["runs", "verify", "quickstart", "--store", "runs"]).exit_code == 0
