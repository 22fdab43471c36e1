"""The manifest's ``[calibration]`` table. Importing this loads no torch."""

from pathlib import Path

import attrs

from bitnet_core.config.student import StudentConfig
from bitnet_core.settings import positive, setting


@attrs.frozen(kw_only=True)
class CalibrationConfig:
    """How a full-precision checkpoint becomes a ternary start (docs/calibrated-start.md)."""

    tokens: int = setting(
        default=20_000,
        help="tokens of training documents that the start is fitted to; more are better and slower",
        validator=positive,
    )


def calibrated_student(student: StudentConfig, start: Path) -> StudentConfig:
    """The same student, started from the checkpoint that its calibration has made."""
    return attrs.evolve(student, init_from=str(start), start=None)
