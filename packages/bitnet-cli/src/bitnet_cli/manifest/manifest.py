"""The manifest as one frozen record, composed of the sections that the libraries define."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from bitnet_cli.errors import RefusedError
from bitnet_cli.manifest.stage_needs import STAGES, default_stages
from bitnet_cli.wording.did_you_mean import did_you_mean
from bitnet_core.config.calibration import CalibrationConfig
from bitnet_core.config.dry_run import DryRunConfig
from bitnet_core.config.evaluate import EvaluateConfig
from bitnet_core.config.project import ProjectConfig
from bitnet_core.config.student import StudentConfig
from bitnet_core.config.train import TrainConfig
from bitnet_providers.config import BaselineConfig, CollectConfig
from bitnet_storage.names_and_paths import run_name_problem

MANIFEST_VERSION: Final = 1


def _check_name(_: Any, __: Any, name: str) -> None:
    problem = run_name_problem(name)
    if problem:
        raise RefusedError(problem, "choose another name")


def _check_seed(_: Any, __: Any, seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise RefusedError(f"must be between 0 and 4294967295: {seed}", "write another one")


def _check_stages(_: Any, __: Any, stages: tuple[str, ...]) -> None:
    if not stages:
        raise RefusedError("names no stage", f"name at least one stage of {', '.join(STAGES)}")
    unknown = [stage for stage in dict.fromkeys(stages) if stage not in STAGES]
    if unknown:
        raise RefusedError(
            "; ".join(f'there is no stage "{stage}"' for stage in unknown),
            " ".join(did_you_mean(stage, STAGES) for stage in unknown),
        )
    in_order = [stage for stage in STAGES if stage in stages]
    if list(stages) != in_order:
        names = ", ".join(f'"{stage}"' for stage in in_order)
        raise RefusedError("stages are named twice or out of order", f"write [{names}]")


@attrs.frozen(kw_only=True)
class RunConfig:
    """What the run is called and what it does."""

    name: str = attrs.field(validator=_check_name, metadata={"help": "the run's folder under the store's root"})
    seed: int = attrs.field(default=0, validator=_check_seed, metadata={"help": "of every random choice"})
    stages: tuple[str, ...] = attrs.field(
        default=default_stages(),
        validator=_check_stages,
        metadata={"help": "what to do, in this order"},
    )


@attrs.frozen
class Tagged:
    """A section whose type a plugin brings: its `kind` and the plugin's options."""

    kind: str
    options: Any


@attrs.frozen
class Exports:
    """The section [export]: which exporters run, and the options of each, whose types the plugins bring."""

    kinds: tuple[str, ...]
    options: Mapping[str, Any]
    """Exporter's name → its options; one for each of `kinds`."""


@attrs.frozen
class Evaluation:
    """The section [evaluate]: how the student is measured, and the options of each benchmark, which plugins type."""

    settings: EvaluateConfig
    options: Mapping[str, Any]
    """Benchmark's name → its options; one for each of `settings.benchmarks`."""


@attrs.frozen(kw_only=True)
class Manifest:
    """A whole manifest, checked. Paths are absolute. Sections that no named stage needs may be None."""

    run: RunConfig
    store: Tagged
    teacher: Tagged | None = None
    baseline: BaselineConfig | None = None
    collect: CollectConfig | None = None
    project: ProjectConfig | None = None
    student: StudentConfig | None = None
    calibration: CalibrationConfig | None = None
    """Its defaults where a manifest has a [student] and says nothing of it."""
    loss: Tagged | None = None
    train: TrainConfig | None = None
    evaluate: Evaluation | None = None
    export: Exports | None = None
    dry_run: DryRunConfig | None = None
    cluster: Tagged | None = None
    """Which launcher starts workers; None: what needs none runs in this process."""
    source: Path = attrs.field(default=Path(), eq=False)
    """The file that it was read from; not part of its content."""


TAGGED_SECTIONS: Final = {"store": "store", "teacher": "teacher", "loss": "loss", "cluster": "launcher"}
"""Section → the kind of plugin that its `kind` names."""
PLAIN_SECTIONS: Final[dict[str, type]] = {  # [evaluate] has its benchmarks' tables beside it
    "run": RunConfig,
    "baseline": BaselineConfig,
    "collect": CollectConfig,
    "project": ProjectConfig,
    "student": StudentConfig,
    "calibration": CalibrationConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "dry_run": DryRunConfig,
}
EVALUATE_SECTION: Final = "evaluate"
EXPORT_SECTION: Final = "export"
SECTIONS: Final = tuple(
    field.name
    for field in attrs.fields(Manifest)
    if field.name in (*PLAIN_SECTIONS, *TAGGED_SECTIONS, EVALUATE_SECTION, EXPORT_SECTION)
)
"""Every section, in the order in which a manifest shows them."""
