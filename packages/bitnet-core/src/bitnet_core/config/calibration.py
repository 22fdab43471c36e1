"""The manifest's ``[calibration]`` table, and which students start calibrated. Importing this loads no torch."""

import json
from pathlib import Path

import attrs

from bitnet_core.config.start import bitnet_format, is_ternarised
from bitnet_core.config.student import LEAST_SQUARES, StudentConfig, calibration_obstacle
from bitnet_core.settings import positive, setting


@attrs.frozen(kw_only=True)
class CalibrationConfig:
    """How a full-precision checkpoint becomes a ternary start (docs/calibrated-start.md)."""

    tokens: int = setting(
        default=20_000,
        help="tokens of training documents that the start is fitted to; more are better and slower",
        validator=positive,
    )


def why_not_calibrated(student: StudentConfig, checkpoint: Path | None) -> str | None:
    """Why the student doesn't start calibrated; None: it does.

    checkpoint: the folder that it starts from, where that is known.
    """
    if student.start == LEAST_SQUARES:
        return f'student.start = "{LEAST_SQUARES}"'
    obstacle = calibration_obstacle(student)
    if obstacle is not None:
        return obstacle
    if student.start is None and student.weight_quantiser != "lsq":
        return f'weight_quantiser = "{student.weight_quantiser}" starts by least squares unless student.start says else'
    if checkpoint is not None and is_ternary(checkpoint):
        return f"{checkpoint} is ternary already: it keeps its codes and scales"
    return None


def is_ternary(checkpoint: Path) -> bool:
    """Whether a model folder holds ternary weights: one of our students, or BitNet's format; False if unreadable."""
    try:
        config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        is_bitnet = bitnet_format(config) is not None
    except (OSError, ValueError, TypeError):
        return False
    if not isinstance(config, dict):
        return False
    if is_ternarised(config):
        return True
    return is_bitnet or (config.get("model_type") == "bitnet_kde" and bool(config.get("quantise_weights", True)))


def calibrated_student(student: StudentConfig, start: Path) -> StudentConfig:
    """The same student, started from the checkpoint that its calibration has made."""
    return attrs.evolve(student, init_from=str(start), start=None)
