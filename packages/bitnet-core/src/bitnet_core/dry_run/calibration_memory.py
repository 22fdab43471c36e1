"""The calibrated start's peak, in closed form: one layer of student and checkpoint at a time, and the fit of a group.

Symbols as in `formulas`; I and O are a group's input width and the output rows of all its linears. Residual streams and
inputs of the groups lie in files that are mapped into memory: they count as disk.
"""

from typing import Any

from bitnet_core.calibration.documents import BATCH_POSITIONS
from bitnet_core.calibration.solve import BLOCK as ROUNDED_TOGETHER
from bitnet_core.config.calibration import CalibrationConfig
from bitnet_core.config.dry_run import DryRunConfig
from bitnet_core.dry_run.formulas import FLOAT, sizes_of

DOUBLE = 8


def calibrated_start(config: DryRunConfig, compute_bytes: int) -> dict[str, Any]:
    """Bytes: the most at a time in memory, and what lies in the work folder for so many tokens."""
    tokens = CalibrationConfig().tokens
    widest = max(config.hidden_size, config.intermediate_size)
    streams = 2 * tokens * (2 * FLOAT * config.hidden_size + 2 * compute_bytes * widest)
    return {
        "peak_bytes": peak_bytes(config, compute_bytes),
        "disk_bytes": streams + sizes_of(config).total * FLOAT,
        "tokens": tokens,
    }


def peak_bytes(config: DryRunConfig, compute_bytes: int, positions: int = BATCH_POSITIONS) -> int:
    """The two layers, what of the student's is quantised already, and the widest place of the widest group.

    positions: the tokens of a batch of documents.
    """
    sizes, width, inner = sizes_of(config), config.hidden_size, config.intermediate_size
    keys = width // config.num_attention_heads * config.num_key_value_heads
    layers = 2 * sizes.layer * FLOAT
    groups = ((width, width + 2 * keys), (width, width), (width, 2 * inner), (inner, width))
    held, peaks = 0, []
    for inputs, outputs in groups:
        peaks.append(
            held
            + max(_fit_bytes(inputs, outputs), positions * _row_bytes(inputs, compute_bytes) + _sums(inputs, outputs))
        )
        held += inputs * outputs * compute_bytes  # quantised once for the groups after it
    return layers + max(peaks)


def _fit_bytes(inputs: int, outputs: int) -> int:
    """`solve.fit` with the moments that it is given, at its two widest places."""
    square, matrix = inputs * inputs, inputs * outputs
    given = FLOAT * (square + 2 * matrix)  # H; the weights and the correction
    # the inverse of the damped H: its factor, the identity, the inverse, that one turned around, and as float32
    elimination = 4 * DOUBLE * square + FLOAT * square + FLOAT * matrix
    # codes in their order and in the columns' own, the weights as they stood, the round before, one being turned
    rounding = FLOAT * (square + 9 * matrix + ROUNDED_TOGETHER * outputs)
    return given + max(elimination, rounding)


def _sums(inputs: int, outputs: int) -> int:
    """The moments of a group while they are gathered, and its weights."""
    return FLOAT * 2 * (inputs * inputs + inputs * outputs)


def _row_bytes(inputs: int, compute_bytes: int) -> int:
    """Of a token: the inputs of both models, weighted, and the gap between them."""
    return inputs * (4 * compute_bytes + 3 * FLOAT)
