"""Does each Triton kernel compute on this device what it should? Beside float64 and whole numbers on the CPU.

    python -m benchmarks.kernel_equality [--device cuda]

The loss's rows with every divergence, kind of target and dtype: values, and gradients by the logits, against those that
autograd takes of `bitnet_core.losses.reference` in float64. Activations to codes, and every tile of the products, with
and without int8 tensor cores, against exact integer arithmetic. An error is relative: of a gradient's entry to itself
or a thousandth of its row's largest, of a product's to itself. A kernel that doesn't compile, or doesn't run, costs its
own rows. With ``--device cpu`` sizes are small and Triton must be told to interpret (``TRITON_INTERPRET=1``).
The last line is one JSON object; the exit status is 1 where anything is off.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from unittest.mock import patch

import attrs
import torch
from torch import Tensor

from bitnet_core.losses import chunk_triton
from bitnet_core.losses.divergences import (
    FORWARD_KL,
    REVERSE_KL,
    Divergence,
    KDTerm,
    jensen_shannon,
    sampled_term,
    tempered_term,
    topk_other_term,
)
from bitnet_core.losses.masks_and_rows import NextTokenRows
from bitnet_core.losses.reference import kd_by_position, sampled_by_position, tempered_by_position
from bitnet_core.runtime.packed import triton_products
from bitnet_core.runtime.packed.triton_products import (
    DP4A_TILE,
    GEMV_TILES,
    PREFILL_TILES,
    Tile,
    has_int8_matrices,
    padded_codes,
    product,
    quantise,
)
from bitnet_core.ternary.activation_quantiser import activation_codes
from bitnet_core.ternary.packed_linear import pack_codes

CE_WEIGHT, FORMAT_WEIGHT = 0.3, 0.5
ROUNDING = {torch.float32: 3e-5, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
"""Largest error of what is stored: rounded once (cut off, by Triton's interpreter), after float32 exponentials."""
VALUES = 1e-4
"""Of a sum over rows, in nats: relative, or a row's share of it."""
ByPosition = Callable[[Tensor, NextTokenRows], Tensor]


@attrs.frozen
class Check:
    """One variant of one kernel."""

    kernel: str
    variant: str
    error: Callable[[], float]
    tolerance: float


@attrs.frozen
class Target:
    """A kind of loss, as the kernel has it and as the reference has it: logits [R, V] and rows in, nats [R] out."""

    term: KDTerm
    by_position: ByPosition
    rows_of: Callable[[NextTokenRows], NextTokenRows] = lambda rows: rows
    """Makes rows of top-K candidates into its own kind."""


def top_k(tau: float, divergence: Divergence = FORWARD_KL) -> Target:
    def by_position(logits_RV: Tensor, rows: NextTokenRows) -> Tensor:
        candidates = (rows.topk_ids, rows.topk_logprobs, rows.other_logprob)
        return kd_by_position(logits_RV, *candidates, tau, divergence.value)

    return Target(topk_other_term(tau, divergence), by_position)


def tempered(tau: float) -> Target:
    return Target(
        tempered_term(tau),
        lambda logits_RV, rows: tempered_by_position(logits_RV, rows.topk_ids, rows.topk_logprobs, rows.log_z, tau),
    )


def sampled() -> Target:
    def by_position(logits_RV: Tensor, rows: NextTokenRows) -> Tensor:
        return sampled_by_position(logits_RV, rows.topk_ids, rows.topk_logprobs, rows.log_z, rows.entropy)

    def draws(rows: NextTokenRows) -> NextTokenRows:
        """The candidates' shares add up to 1, and nothing is left for other."""
        lse_R1 = rows.topk_logprobs.logsumexp(-1, keepdim=True)
        with_kd_R1 = rows.has_kd[:, None]
        return attrs.evolve(
            rows,
            topk_logprobs=torch.where(with_kd_R1, rows.topk_logprobs - lse_R1, -torch.inf),
            other_logprob=torch.where(rows.has_kd, -torch.inf, 0.0),
            log_z=torch.where(rows.has_kd, rows.log_z / 10, 0.0),
        )

    return Target(sampled_term(), by_position, draws)


def random_rows(count: int, vocabulary: int, k: int, tau: float) -> NextTokenRows:
    """Rows without KD, without an answer, with unused slots whose id is another's, and without mass for other."""
    generator = torch.Generator().manual_seed(vocabulary + k)

    def coin(share: float) -> Tensor:
        return torch.rand(count, generator=generator) < share

    logprobs_RV = (3 * torch.randn(count, vocabulary, generator=generator)).log_softmax(-1)
    values_RK, ids_RK = logprobs_RV.topk(k, dim=-1)
    has_kd, short = coin(0.8), coin(0.3)
    values_RK[short, -1], ids_RK[short, -1] = -torch.inf, ids_RK[short, 0]
    other_R = torch.where(coin(0.1), -torch.inf, (1 - values_RK.exp().sum(-1)).clamp(min=1e-8).log())
    return NextTokenRows(
        hidden_ND=torch.zeros(count, 1),
        target=torch.where(coin(0.5), ids_RK[:, 0], torch.randint(0, vocabulary, (count,), generator=generator)),
        topk_ids=ids_RK,
        topk_logprobs=torch.where(has_kd[:, None], values_RK, -torch.inf),
        other_logprob=torch.where(has_kd, other_R, 0.0),
        sample_logprob=torch.zeros(count),
        has_kd=has_kd,
        is_response=coin(0.8),
        is_format=coin(0.3),
        document=torch.zeros(count, dtype=torch.int64),
        log_z=torch.where(has_kd, (logprobs_RV / tau).logsumexp(-1), 0.0),
        entropy=torch.ones(count),
    )


def moved(rows: NextTokenRows, device: str, floats: torch.dtype) -> NextTokenRows:
    columns = attrs.astuple(rows, recurse=False)
    return NextTokenRows(*(each.to(device, floats if each.is_floating_point() else None) for each in columns))


def loss_error(
    target: Target, dtype: torch.dtype, device: str, *, vocabulary: int, k: int = 20, count: int = 64,
    gradient: bool = True,
) -> float:  # fmt: skip
    """Of values and gradient together: the larger one, the values' as a multiple of what is allowed to the gradient."""
    rows = target.rows_of(random_rows(count, vocabulary, k, target.term.tau))
    generator = torch.Generator().manual_seed(1)
    logits_RV = (4 * torch.randn(count, vocabulary, generator=generator)).to(dtype)
    exact_RV = logits_RV.double().requires_grad_()
    wide = moved(rows, "cpu", torch.float64)
    kd_R = target.by_position(exact_RV, wide)
    nll_R = torch.nn.functional.cross_entropy(exact_RV, wide.target, reduction="none")
    zero = torch.zeros((), dtype=torch.float64)
    sums_3 = torch.stack([
        torch.where(mask, each, zero).sum()
        for mask, each in ((wide.has_kd, kd_R), (wide.is_response, nll_R), (wide.is_format, nll_R))
    ])  # fmt: skip
    (sums_3 @ torch.tensor([1.0, CE_WEIGHT, FORMAT_WEIGHT], dtype=torch.float64)).backward()

    work_RV = logits_RV.to(device)
    of = chunk_triton.TritonRows.for_chunks(
        work_RV, moved(rows, device, torch.float32), target.term, CE_WEIGHT, FORMAT_WEIGHT, gradient
    )
    found_3 = of(work_RV, 0).cpu().double()
    off_3 = (found_3 - sums_3.detach()).abs() / sums_3.detach().abs().clamp(min=count)
    value = off_3.max().item() / VALUES * ROUNDING[dtype]
    if not gradient:
        return value
    expected_RV = exact_RV.grad
    assert expected_RV is not None
    scale_RV = expected_RV.abs().clamp(min=expected_RV.abs().amax(-1, keepdim=True).clamp(min=1e-6) / 1000)
    return max(value, ((work_RV.cpu().double() - expected_RV).abs() / scale_RV).max().item())


def loss_checks(device: str) -> Iterator[Check]:
    small = device == "cpu"
    usual, odd, large = (9000, 300, 300) if small else (49152, 50257, 151936)
    least = {"count": 6} if small else {}
    kinds: list[tuple[str, Target, tuple[torch.dtype, ...], dict[str, int]]] = [
        ("forward KL", top_k(1.0), (torch.float32, torch.float16, torch.bfloat16), {"vocabulary": usual}),
        ("forward KL, tau 1.6", top_k(1.6), (torch.bfloat16,), {"vocabulary": usual}),
        ("forward KL, 256 candidates", top_k(1.0), (torch.bfloat16,), {"vocabulary": usual, "k": 256}),
        ("forward KL, 1 candidate", top_k(1.0), (torch.float32,), {"vocabulary": odd, "k": 1}),
        (f"forward KL, {odd} tokens", top_k(1.0), (torch.bfloat16,), {"vocabulary": odd}),
        ("reverse KL", top_k(1.6, REVERSE_KL), (torch.float32, torch.bfloat16), {"vocabulary": usual}),
        ("JSD", top_k(1.6, jensen_shannon(0.3)), (torch.float32, torch.bfloat16), {"vocabulary": usual}),
        ("sampled", sampled(), (torch.float32,), {"vocabulary": usual}),
        ("tempered first", tempered(1.6), (torch.float32, torch.bfloat16), {"vocabulary": large}),
    ]
    for name, target, dtypes, sizes in kinds:
        for dtype in dtypes:
            error = partial(loss_error, target, dtype, device, **sizes, **least)
            yield Check("_row", f"{name}, {_short(dtype)}", error, ROUNDING[dtype])
    no_gradient = partial(loss_error, top_k(1.0), torch.float32, device, vocabulary=usual, gradient=False, **least)
    yield Check("_row", "forward KL, values alone", no_gradient, ROUNDING[torch.float32])


def quantise_error(dtype: torch.dtype, inputs: int, bits: int, device: str) -> float:
    """Codes and sums must be the very integers that the scale says; the scale may be off in its last bit at 4 bits."""
    torch.manual_seed(inputs)
    x_NI = (torch.randn(5, inputs) * torch.rand(5, 1) * 10).to(dtype)
    x_NI[0] = 0
    found = quantise(x_NI.to(device), bits)
    scale_N, sum_N = found.scale_N.cpu(), found.sum_N.cpu()
    codes_NI = found.planes_N4P.cpu().permute(0, 2, 1).reshape(5, -1)
    assert not codes_NI[:, inputs:].any(), "codes behind the last column"
    expected_NI, expected_scale_N1 = activation_codes(x_NI.float(), bits)
    if bits == 4:
        expected_NI = (x_NI.float() / scale_N[:, None]).round().clamp(-8, 7)
    assert torch.equal(codes_NI[:, :inputs].float(), expected_NI), "other codes"
    assert torch.equal(sum_N.long(), expected_NI.long().sum(1)), "other sums"
    return ((scale_N.double() - expected_scale_N1[:, 0].double()) / expected_scale_N1[:, 0].double()).abs().max().item()


def product_error(
    tile: Tile | None, device: str, *, tokens: int, outputs: int, inputs: int, matrices: bool,
    dtype: torch.dtype = torch.float32, bias: bool = False,
) -> float:  # fmt: skip
    """Sums of these sizes are whole numbers that float64 holds exactly."""
    torch.manual_seed(outputs)
    weight_OI = torch.randint(-1, 2, (outputs, inputs), dtype=torch.int8)
    weight_OI[0] = -1
    scale_O, bias_O = torch.rand(outputs) + 0.5, torch.randn(outputs) if bias else None
    x_NI = torch.randn(tokens, inputs)
    x_NI[-1] = -2.0  # with the row of -1: the largest sum there is
    quantised = quantise(x_NI.to(device), 8)
    codes_NI, _ = activation_codes(x_NI, 8)
    whole_NO = codes_NI.double() @ weight_OI.double().T
    exact_NO = whole_NO * scale_O.double() * quantised.scale_N.cpu().double()[:, None]
    if bias_O is not None:
        exact_NO += bias_O
    packed, on_device = padded_codes(pack_codes(weight_OI)).to(device), scale_O.to(device)
    with patch.object(triton_products, "has_int8_matrices", lambda _: matrices):
        found_NO = product(
            quantised, packed, on_device, None if bias_O is None else bias_O.to(device), dtype=dtype, tile=tile
        )
    least = exact_NO.abs().max() * (1e-3 if bias else 1e-12)  # a sum with a bias may cancel
    return ((found_NO.cpu().double() - exact_NO).abs() / exact_NO.abs().clamp(min=least)).max().item()


def product_checks(device: str) -> Iterator[Check]:
    small = device == "cpu"
    sizes = {"outputs": 40, "inputs": 1100} if small else {"outputs": 1027, "inputs": 11008}
    many = 20 if small else 300
    matrices = small or has_int8_matrices(torch.empty(1, device=device))
    single = 5e-7  # two products of float32, each rounded
    for tile in GEMV_TILES:
        error = partial(product_error, tile, device, tokens=1, matrices=matrices, **sizes)
        yield Check("gemv_kernel", f"{tile.rows}x{tile.inner} with {tile.warps} warps", error, single)
    products = [("matmul_kernel", tile) for tile in PREFILL_TILES if matrices] + [("dp4a_matmul_kernel", DP4A_TILE)]
    for kernel, tile in products:
        error = partial(product_error, tile, device, tokens=many, matrices=kernel == "matmul_kernel", **sizes)
        size = f"{tile.tokens}x{tile.rows}x{tile.inner} with {tile.warps} warps"
        yield Check(kernel, size, error, single)
    for kernel, tokens in (("gemv_kernel", 1), (products[0][0], many), ("dp4a_matmul_kernel", many)):
        for dtype, bias in ((torch.bfloat16, False), (torch.float16, False), (torch.float32, True)):
            error = partial(
                product_error, None, device, tokens=tokens, matrices=matrices and kernel != "dp4a_matmul_kernel",
                dtype=dtype, bias=bias, **sizes,
            )  # fmt: skip
            tolerance = 3e-5 if bias else ROUNDING[dtype]
            yield Check(kernel, f"first tile, {_short(dtype)}{', bias' * bias}", error, tolerance)


def checks(device: str) -> Iterator[Check]:
    yield from loss_checks(device)
    for bits in (8, 4):
        for inputs in (7, 576) if device == "cpu" else (7, 576, 4096, 11008):
            for dtype in (torch.float32, torch.bfloat16):
                error = partial(quantise_error, dtype, inputs, bits, device)
                yield Check("quantise_kernel", f"A{bits}, {inputs} wide, {_short(dtype)}", error, 3e-7 * (bits == 4))
    yield from product_checks(device)


def row_of(check: Check) -> dict[str, object]:
    try:
        error = check.error()
    except Exception as failure:  # of any kind: the others are looked at all the same
        said = f"{type(failure).__name__}: {str(failure).strip() or 'no message'}"
        return {"kernel": check.kernel, "variant": check.variant, "ok": False, "failure": said[-500:]}
    right = math.isfinite(error) and error <= check.tolerance
    return {
        "kernel": check.kernel, "variant": check.variant, "ok": right, "error": error, "tolerance": check.tolerance
    }  # fmt: skip


def _short(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    device = parser.parse_args().device
    rows = []
    for check in checks(device):
        rows.append(row_of(check))
        print(json.dumps(rows[-1]), flush=True)
    wrong = [f"{row['kernel']}, {row['variant']}" for row in rows if not row["ok"]]
    print(json.dumps({"variants": len(rows), "wrong": wrong, "rows": rows}))
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
