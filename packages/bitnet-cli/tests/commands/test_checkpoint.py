"""`bitnet checkpoint`: what is no checkpoint is never called a broken one, which the user should delete."""

from pathlib import Path

from click.testing import CliRunner

from bitnet_cli.main import cli


def test_a_run_folder_is_told_its_checkpoint(tmp_path: Path) -> None:
    def told() -> str:
        done = CliRunner().invoke(cli, ["checkpoint", str(tmp_path)])
        assert done.exit_code == 2
        return done.output.replace(str(tmp_path), "RUN")

    assert told() == (
        "error: RUN is no checkpoint: it has no training.json  → name a folder checkpoints/step_N of a run\n"
    )
    for name in ("step_10", "step_5", "step_20.damaged"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "training.json").touch()
    (tmp_path / "checkpoints/step_10_health.json").touch()
    assert told().endswith("  → name one of its checkpoints: RUN/checkpoints/step_10\n")
