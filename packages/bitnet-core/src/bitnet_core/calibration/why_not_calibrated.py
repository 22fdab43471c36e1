"""Which students don't start calibrated, and why. Loads no torch."""

from pathlib import Path

from bitnet_core.config.student import LEAST_SQUARES, StudentConfig, calibration_obstacle
from bitnet_core.weight_format import is_ternary


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
