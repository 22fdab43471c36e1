"""`bitnet dry-run` and the dry_run stage, on a tiny model; and the shipped manifest."""

import json
from pathlib import Path

import attrs
import pytest
from click.testing import CliRunner, Result

from bitnet_cli.main import cli
from bitnet_cli.manifest import load_manifest
from bitnet_cli.plugins.load import load_plugins
from bitnet_cli.report.markdown import to_markdown
from bitnet_cli.report.read_run import read_run
from bitnet_cli.report.sections.dry_run import dry_run_blocks
from bitnet_cli.report.write_report import report_blocks
from bitnet_core.config.dry_run import DryRunConfig
from bitnet_core.dry_run.calibration_memory import calibrated_start
from bitnet_core.dry_run.deployed_sizes import deployed
from bitnet_core.dry_run.formulas import sizes_of

MANIFEST = """
manifest_version = 1
[run]
name = "tiny"
stages = ["storage", "dry_run", "report"]
[store]
kind = "local"
root = "runs"
[dry_run]
vocab_size = 300
hidden_size = 64
intermediate_size = 160
num_hidden_layers = 1
num_attention_heads = 4
num_key_value_heads = 4
context = 32
"""


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "m.toml"
    path.write_text(MANIFEST)
    return path


def bitnet(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


@pytest.mark.slow
def test_the_stage_and_the_report(manifest: Path) -> None:
    result = bitnet("run", str(manifest))
    assert result.exit_code == 0, result.output
    folder = manifest.parent / "runs/tiny"
    report = json.loads((folder / "reports/dry_run_7b.json").read_text())
    assert report["measured"]
    assert report["phases"]["train_a4"]["measured_bytes"] > report["phases"]["load"]["measured_bytes"]
    text = (folder / "report.md").read_text()
    assert "Dry run: memory" in text
    assert "What fits where" in text
    assert "### As deployed" in text
    again = bitnet("run", str(manifest))
    assert "up to date" in again.output or "skip" in again.output


@pytest.mark.slow
def test_a_damaged_report_is_left_out(manifest: Path) -> None:
    assert bitnet("run", str(manifest), "--set", 'dry_run.measure="never"').exit_code == 0
    folder = manifest.parent / "runs/tiny"
    (folder / "reports/dry_run_7b.json").write_text('{"phases": 3}')
    assert not any("Dry run" in str(block) for block in report_blocks(read_run(folder)))


@pytest.mark.slow
def test_the_command_prints_both_tables(manifest: Path) -> None:
    result = bitnet("dry-run", str(manifest), "--set", 'dry_run.measure="never"')
    assert result.exit_code == 0, result.output
    for words in (
        "prefill",
        "train, A4",
        "What fits where",
        "What GPUs send each other",
        "As deployed",
        'Predicted, not measured: dry_run.measure is "never"',
    ):
        assert words in " ".join(result.output.split()), words
    assert not (manifest.parent / "runs/tiny/reports").exists()


@pytest.mark.slow
def test_json(manifest: Path) -> None:
    result = CliRunner().invoke(cli, ["dry-run", str(manifest), "--set", 'dry_run.measure="never"', "--json"])
    assert json.loads(result.stdout)["model"]["hidden_size"] == 64


def test_too_large_is_refused_and_not_made_smaller(manifest: Path) -> None:
    sizes = ("hidden_size=65536", "intermediate_size=262144", "num_hidden_layers=200", 'measure="always"')
    result = bitnet("dry-run", str(manifest), *(part for size in sizes for part in ("--set", f"dry_run.{size}")))
    assert result.exit_code == 2
    assert 'error: dry_run.measure = "always", but it needs' in result.output
    assert "Traceback" not in result.output


def test_a_manifest_without_the_section(manifest: Path) -> None:
    manifest.write_text(MANIFEST.partition("[dry_run]")[0].replace('"dry_run", ', ""))
    result = bitnet("dry-run", str(manifest))
    assert result.exit_code == 2
    assert "needs a [dry_run] table" in result.output


def test_the_shipped_manifest_is_a_7b() -> None:
    path = Path(__file__).parents[4] / "manifests/7b-dry-run.toml"
    loaded = load_manifest(path, (), load_plugins({}), {})
    assert loaded.dry_run is not None
    assert 6.7e9 < sizes_of(loaded.dry_run).total < 6.75e9
    assert loaded.run.stages == ("storage", "dry_run", "report")


def test_what_people_deploy_stands_beside_the_training_form() -> None:
    """As docs/dry-run.md has it of the 7B."""
    config = DryRunConfig()
    report = {"phases": {}, "model": attrs.asdict(config), "what_fits": [], "deployed": deployed(config, 2)}
    text = to_markdown([*dry_run_blocks(report | {"calibrated_start": calibrated_start(config, 2)})])
    assert (
        "A layer at a time: at most 7.32 GB of memory by formula, and 30.03 GB on the disk for 20,000 tokens." in text
    )
    page = (Path(__file__).parents[4] / "docs/dry-run.md").read_text()
    header, _, *rows = text.partition("### As deployed")[2].partition("\n| ")[2].partition("\n\n")[0].splitlines()
    assert "| " + header in page
    assert len(rows) == 5
    for row in rows:
        assert row.replace("\\_", "_") in page
    older = to_markdown([*dry_run_blocks({name: report[name] for name in ("phases", "model", "what_fits")})])
    assert "As deployed" not in older
    assert "send each other" not in older
    assert "Calibrated start" not in older
