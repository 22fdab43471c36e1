"""The list of stages: complete, in order, and true about what it reads, writes and versions."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import torch

from bitnet_cli import run_folder
from bitnet_cli.manifest.manifest import PLAIN_SECTIONS, SECTIONS
from bitnet_cli.manifest.stage_needs import ALL
from bitnet_cli.pipeline.run_or_skip import absent_sections
from bitnet_cli.plugins.catalog import Plugins
from bitnet_cli.stages import PIPELINE
from bitnet_cli.stages.train import result_files


def test_the_pipeline_is_what_a_manifest_may_name() -> None:
    assert tuple(stage.facts for stage in PIPELINE) == ALL


def test_what_is_read_was_written_before() -> None:
    written: set[str] = set()
    for stage in PIPELINE:
        assert {*stage.reads, *stage.reads_if_there} <= written, stage.name
        assert not written & set(stage.writes), "each output has one maker"
        written |= set(stage.writes)


def test_sections_exist() -> None:
    for stage in PIPELINE:
        assert {section.partition(".")[0] for section in stage.all_sections()} <= set(SECTIONS), stage.name


def test_what_may_be_borrowed_is_a_setting() -> None:
    for stage in PIPELINE:
        for section, name in stage.facts.borrows:
            assert name in attrs.fields_dict(PLAIN_SECTIONS[section]), stage.name


def test_only_stages_that_ask_the_teacher_keep_what_they_wrote() -> None:
    assert [stage.name for stage in PIPELINE if stage.keeps_writes] == ["baseline", "collect"]
    assert [stage.name for stage in PIPELINE if stage.asks_teacher] == ["baseline", "collect"]


def test_absent_sections() -> None:
    class Nothing:
        run = object()

    assert absent_sections(PIPELINE[-1], Nothing()) == ()
    assert absent_sections(next(s for s in PIPELINE if s.name == "train"), Nothing()) == (
        "student", "loss", "train", "project"
    )  # fmt: skip


def test_a_training_is_its_newest_checkpoint(tmp_path: Path) -> None:
    for step in ("step_9", "step_10"):
        for file in ("model.safetensors", "training.safetensors", "training.json"):
            path = tmp_path / "checkpoints" / step / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(step)
    found = [path.relative_to(tmp_path).as_posix() for path in result_files(tmp_path, run_folder.CHECKPOINTS)]
    assert found == ["checkpoints/step_10/model.safetensors", "checkpoints/step_10/training.json"]


@pytest.mark.parametrize(
    ("precision", "device", "told"),
    [("fp16", "cpu", 1), ("fp16", "cuda", 0), ("auto", "cpu", 0), ("bf16", "cpu", 0)],
)
def test_a_precision_that_the_machine_lacks_is_told_beforehand(
    precision: str, device: str, told: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitnet_core.hardware.best_device", lambda: torch.device(device))
    manifest: Any = SimpleNamespace(
        train=SimpleNamespace(precision=precision, packing=None), project=None, student=None
    )
    check = next(stage.check for stage in PIPELINE if stage.name == "train")
    assert check is not None
    problems = list(check(manifest, Plugins(teachers={}, stores={}, losses={}, all=())))
    assert len(problems) == told
    assert all("train.precision=" in str(problem) for problem in problems)


def test_format_versions_are_the_libraries() -> None:
    from bitnet_core.calibration.calibrate import FORMAT_VERSION as CALIBRATION_FORMAT
    from bitnet_core.export.folder import RECORD_FORMAT
    from bitnet_core.model.read_checkpoint import READABLE
    from bitnet_core.projection.raw_folder import RAW_VERSION
    from bitnet_core.traces.schema import KD_VERSION

    versions = {
        "raw shard": RAW_VERSION, "KD shard": KD_VERSION, "exports": RECORD_FORMAT, "report": 1,
        "calibration": CALIBRATION_FORMAT,
        "checkpoint": min(READABLE),  # nobody trains again for a version that may still be read
    }  # fmt: skip
    for stage in PIPELINE:
        for name, version in stage.formats.items():
            assert version == versions[name], (stage.name, name)
