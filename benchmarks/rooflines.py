"""How fast each Triton kernel can be at most: the table of docs/runtime-gpu.md.

    python -m benchmarks.rooflines

For each launch of `benchmarks.kernels` below: the bytes that must be moved, each input once and each output once (the
loss's logits as often as its passes need: rows of a large vocabulary outgrow the caches near the processors), the
operations that limit it beside memory, and on each chip the longer of the two times at the vendor's peak rates. A real
kernel is slower; one that is several times slower leaves something to be found.
"""

from collections.abc import Callable
from functools import partial

import attrs
import torch
from torch import Tensor

from benchmarks.kernels import Launch, loss_rows, multiplied, quantised, recorded
from bitnet_core.losses.divergences import tempered_term, topk_other_term


@attrs.frozen
class Chip:
    """Peaks of the vendor's data sheets; rates of dp4a and exp are lanes a clock x processors x boost clock."""

    name: str
    capability: int
    bytes_s: float
    int8_s: float
    """Operations of the tensor cores, two a multiplication with its sum."""
    dp4a_s: float
    """Operations, eight an instruction, in 64 lanes a processor and clock."""
    exp_s: float
    """In 16 lanes."""
    fp32_s: float


CHIPS = (
    Chip("T4", 75, 320e9, 130e12, 40 * 64 * 8 * 1.59e9, 40 * 16 * 1.59e9, 8.1e12),
    Chip("A100", 80, 2039e9, 624e12, 108 * 64 * 8 * 1.41e9, 108 * 16 * 1.41e9, 19.5e12),
    Chip("H100", 90, 3352e9, 1979e12, 132 * 64 * 8 * 1.98e9, 132 * 16 * 1.98e9, 66.9e12),
)
"""T4; A100 SXM 80 GB; H100 SXM."""
WORK: tuple[tuple[str, Callable[[], None]], ...] = (
    ("activations, 1 x 4096", partial(quantised, torch.float32, 4096, 8)),
    ("activations, 512 x 4096", partial(quantised, torch.float32, 4096, 8, tokens=512)),
    ("decode, 4096 x 4096", partial(multiplied, outputs=4096, inputs=4096)),
    ("decode, 4096 x 11008", partial(multiplied, outputs=4096, inputs=11008)),
    ("decode, 28672 x 8192", partial(multiplied, outputs=28672, inputs=8192)),
    ("prefill of 512, 4096 x 4096", partial(multiplied, outputs=4096, inputs=4096, tokens=512)),
    ("prefill of 512, 4096 x 11008", partial(multiplied, outputs=4096, inputs=11008, tokens=512)),
    ("loss, 1024 x 49152, bf16", partial(loss_rows, topk_other_term(1.0), torch.bfloat16)),
    ("loss tempered first, 1024 x 151936, bf16",
     partial(loss_rows, tempered_term(1.6), torch.bfloat16, vocabulary=151936)),
)  # fmt: skip
"""What a kernel is launched for: outputs x inputs of a product, rows x vocabulary of the loss."""


@attrs.frozen
class Need:
    """Of one launch."""

    bytes: int
    operations: int
    kind: str
    """Of operation: the field of `Chip` that has its rate, without ``_s``."""

    def seconds(self, chip: Chip) -> float:
        rate: float = getattr(chip, f"{self.kind}_s")
        return max(self.bytes / chip.bytes_s, self.operations / rate)


def need_of(launch: Launch) -> Need:
    """What `launch` moves and computes, from its arguments' shapes."""
    given = launch.arguments
    tensors = {id(value): value for value in given.values() if isinstance(value, Tensor)}  # an absent bias is another's
    moved = sum(tensor.nbytes for tensor in tensors.values())
    if launch.name == "_row":
        logits_CV, gradient = given["logits_ptr"], given["WANT_GRADIENT"]
        passes = 1 + gradient
        exponentials = logits_CV.numel() * passes * (1 + given["TEMPER_FIRST"])
        return Need(moved + logits_CV.nbytes * 2 * gradient, exponentials, "exp")  # read twice, written once
    if launch.name == "quantise_kernel":
        return Need(
            moved, 8 * given["x"].numel(), "fp32"
        )  # |x|, its maximum, division, two rounding sums, two casts, sum
    tokens, outputs = given["y"].shape
    products = 2 * tokens * outputs * 4 * given["codes"].shape[1] * given["codes"].element_size()
    return Need(moved, products, "int8" if launch.name == "matmul_kernel" else "dp4a")


def table() -> str:
    """In Markdown."""
    head = ["work", "kernel", "MB", "million operations", *(f"{chip.name}, µs" for chip in CHIPS)]
    lines = [head, ["---"] * 2 + ["---:"] * (len(head) - 2)]
    for work, run in WORK:
        launches = [recorded(work, chip.capability, run)[0] for chip in CHIPS]
        needs = [need_of(launch) for launch in launches]
        names = " / ".join(dict.fromkeys(f"`{launch.name}`" for launch in launches))
        kinds = " / ".join(dict.fromkeys(need.kind for need in needs))
        times = [_short(need.seconds(chip) * 1e6) for need, chip in zip(needs, CHIPS, strict=True)]
        lines.append(
            [work, names, _short(needs[0].bytes / 1e6), f"{_short(needs[0].operations / 1e6)} {kinds}", *times]
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


if __name__ == "__main__":
    print(table())
