"""One file for each table of the manifest that configures bitnet-core. Importing this loads no torch."""

from bitnet_core.config.calibration import CalibrationConfig
from bitnet_core.config.dry_run import DryRunConfig
from bitnet_core.config.evaluate import EvaluateConfig, JSONValidityOptions, LMEvalOptions, NoOptions
from bitnet_core.config.export import GGUFOptions, HFOptions, PackedOptions
from bitnet_core.config.loss import (
    IntermediateConfig,
    JensenShannonConfig,
    ReverseKLConfig,
    SampledConfig,
    TemperedConfig,
    TopKOtherConfig,
)
from bitnet_core.config.project import ProjectConfig
from bitnet_core.config.student import StudentConfig
from bitnet_core.config.train import TrainConfig

__all__ = [
    "CalibrationConfig",
    "DryRunConfig",
    "EvaluateConfig",
    "GGUFOptions",
    "HFOptions",
    "IntermediateConfig",
    "JSONValidityOptions",
    "JensenShannonConfig",
    "LMEvalOptions",
    "NoOptions",
    "PackedOptions",
    "ProjectConfig",
    "ReverseKLConfig",
    "SampledConfig",
    "StudentConfig",
    "TemperedConfig",
    "TopKOtherConfig",
    "TrainConfig",
]
