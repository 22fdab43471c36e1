"""`bitnet sweep`: one teacher asked once, a run for each value, one that fails, and one page on the others."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import tiny_run
from bitnet_cli.main import cli
from bitnet_cli.sweeping.schedule import Task

ROOT = Path(__file__).parents[1]
MANIFEST = str(ROOT / "manifests/quickstart.toml")


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    settings = tiny_run.tiny_settings(tmp_path, tiny_run.make_teacher(tmp_path / "teacher"))
    texts = [f"{key}={json.dumps(str(value)) if isinstance(value, Path) else value}" for key, value in settings.items()]
    return [part for text in texts for part in ("--set", text)]


def bitnet(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def events(root: Path, run: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / f"runs/quickstart-sweep/{run}.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_sweep_shares_what_is_alike_and_goes_on(arguments: list[str], tmp_path: Path) -> None:
    over = ["--over", "train.learning_rate=1e-3,1e30,2e-3"]
    code, output = bitnet("sweep", MANIFEST, *over, *arguments)
    assert code == 2, output
    names = [f"quickstart-learning_rate-{value}" for value in ("1e-3", "1e30", "2e-3")]
    assert re.search(rf"{names[1]} failed: train: .*loss", output), output
    assert "1 of 3 runs failed; the same command tries them again" in output

    started = {name: [e["stage"] for e in events(tmp_path, name) if e["event"] == "stage_started"] for name in names}
    alike = {"baseline", "collect", "project", "calibrate"}
    assert alike <= set(started[names[0]])
    assert not alike & set(started[names[2]])
    assert "evaluate" in started[names[2]]
    shards = [sorted((tmp_path / "runs" / name / "raw").glob("shard_*")) for name in (names[0], names[2])]
    assert [path.read_bytes() for path in shards[0]] == [path.read_bytes() for path in shards[1]]
    page = (tmp_path / "runs/quickstart-sweep/comparison.html").read_text()
    assert names[0] in page
    assert names[2] in page
    assert names[1] not in page

    # What is done stays done; a value that nobody wanted before is the only work.
    before = {name: len(events(tmp_path, name)) for name in (names[0], names[2])}
    code, output = bitnet("sweep", MANIFEST, "--over", "train.learning_rate=1e-3,2e-3,3e-3", *arguments)
    assert code == 0, output
    assert before == {name: len(events(tmp_path, name)) for name in (names[0], names[2])}
    new = [e["stage"] for e in events(tmp_path, "quickstart-learning_rate-3e-3") if e["event"] == "stage_started"]
    assert new == ["storage", "train", "evaluate", "export", "report"]


def test_a_run_may_take_from_those_of_earlier_sweeps(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("quickstart-learning_rate-9e-9", "quickstart-sweep", "another-run"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    others = []

    async def run_sweep(sweep: Any, job: Any, launcher: Any, say: Any) -> dict[str, str]:
        variants = [each.variant for each in sweep.keyed]
        others.append(job.run_of(Task(variants[0], ("train",), ())).others)
        return {each.name: "not run" for each in variants}

    monkeypatch.setattr("bitnet_cli.sweeping.sweep.run_sweep", run_sweep)
    bitnet("sweep", MANIFEST, "--over", "train.learning_rate=1e-3,2e-3", *arguments)
    assert others == [["quickstart", "quickstart-learning_rate-2e-3", "quickstart-learning_rate-9e-9"]]


def test_what_is_wrong_is_told_before_anything_starts(arguments: list[str], tmp_path: Path) -> None:
    code, output = bitnet("sweep", MANIFEST, "--over", "train.learning_rate=1e-3,fast,-1.0", *arguments)
    assert code == 2
    assert "nothing was started" in output
    assert "train.learning_rate = fast: " in output
    assert "train.learning_rate = -1.0: " in output
    assert not (tmp_path / "runs").exists()
    code, output = bitnet("sweep", MANIFEST, *arguments)
    assert (code, "--over: nothing is swept" in output) == (2, True)


def test_print_shows_the_commands_and_runs_nothing(arguments: list[str], tmp_path: Path) -> None:
    code, output = bitnet("sweep", MANIFEST, "--over", "train.steps=2,3", "--print", *arguments)
    assert code == 0, output
    assert "--set train.steps=3 --set 'run.name=\"quickstart-steps-3\"'" in output
    assert "takes baseline, collect, project, calibrate from quickstart-steps-2" in output
    assert not (tmp_path / "runs").exists()
