"""The kernel against eager PyTorch on the device named, for `test_triton_rows`: ``python triton_rows_process.py cpu``.

On the CPU the environment must say TRITON_INTERPRET=1 before triton is imported: it then runs kernels with numpy.
"""

import sys

import attrs
import torch
from torch import Tensor

from bitnet_core.losses import chunk_triton
from bitnet_core.losses.chunk_eager import EagerRows
from bitnet_core.losses.divergences import (
    FORWARD_KL,
    REVERSE_KL,
    KDTerm,
    jensen_shannon,
    sampled_term,
    tempered_term,
    topk_other_term,
)
from bitnet_core.losses.masks_and_rows import NextTokenRows

ROWS, VOCABULARY = 7, 21
LAST_BIT = {torch.float32: 0.0, torch.bfloat16: 2**-7}
"""Which may fall either way."""
KINDS = {
    "topk_other": topk_other_term(1.0),
    "topk_other at 1.6": topk_other_term(1.6, FORWARD_KL),
    "reverse_kl": topk_other_term(0.7, REVERSE_KL),
    "jsd": topk_other_term(1.6, jensen_shannon(0.3)),
    "sampled": sampled_term(),
    "tempered": tempered_term(1.6),
}


def random_rows(seed: int, k: int, device: str, tau: float = 1.6) -> NextTokenRows:
    """Unused slots whose id is another's, rows without KD, without an answer, without mass for other."""
    generator = torch.Generator().manual_seed(seed)

    def coin(p: float) -> Tensor:
        return torch.rand(ROWS, generator=generator) < p

    logprobs = (2 * torch.randn(ROWS, VOCABULARY, generator=generator)).log_softmax(-1)
    values, ids = logprobs.topk(k, dim=-1)
    has_kd = coin(0.7)
    short = coin(0.4) if k > 1 else torch.zeros(ROWS, dtype=torch.bool)
    values[short, -1], ids[short, -1] = -torch.inf, ids[short, 0]
    other = torch.where(coin(0.3), -torch.inf, (1 - values.exp().sum(-1)).clamp(min=1e-8).log())
    target = torch.where(coin(0.5), ids[:, 0], torch.randint(0, VOCABULARY, (ROWS,), generator=generator))
    rows = NextTokenRows(
        hidden_ND=torch.zeros(ROWS, 1),
        target=target,
        topk_ids=ids,
        topk_logprobs=torch.where(has_kd[:, None], values, -torch.inf),
        other_logprob=torch.where(has_kd, other, 0.0),
        sample_logprob=torch.zeros(ROWS),
        has_kd=has_kd,
        is_response=coin(0.8),
        is_format=coin(0.3),
        document=torch.zeros(ROWS, dtype=torch.int64),
        log_z=torch.where(has_kd, (logprobs / tau).logsumexp(-1), 0.0),
        entropy=torch.ones(ROWS),
    )
    return NextTokenRows(*(column.to(device) for column in attrs.astuple(rows, recurse=False)))


def compare(
    kd: KDTerm, rows: NextTokenRows, logits_NV: Tensor, *, want_gradient: bool = True, rtol: float = 1e-5
) -> None:
    """In two chunks."""
    found = []
    for way in (EagerRows, chunk_triton.TritonRows):
        work_NV = logits_NV.clone()
        run = way.for_chunks(work_NV[:4], rows, kd, 0.3, 0.5, want_gradient)
        found.append((run(work_NV[:4], 0) + run(work_NV[4:], 4), work_NV))
    (expected, gradient_NV), (sums_3, mine_NV) = found
    torch.testing.assert_close(sums_3, expected, rtol=rtol, atol=1e-5)
    if want_gradient:
        assert not torch.equal(gradient_NV, logits_NV)
        torch.testing.assert_close(mine_NV, gradient_NV, rtol=max(rtol, LAST_BIT[logits_NV.dtype]), atol=rtol / 10)


def main(device: str) -> None:
    torch.set_num_threads(1)
    chunk_triton._LARGEST_BLOCK = 8  # several blocks a row
    lively = 3 * torch.randn(ROWS, VOCABULARY, generator=torch.Generator().manual_seed(9))
    for name, kd in KINDS.items():
        for k in (1, 5, VOCABULARY):
            rows = random_rows(k, k, device)
            compare(kd, rows, lively.to(device))
            compare(kd, rows, lively.to(device, torch.bfloat16))
            compare(kd, rows, lively.to(device), want_gradient=False)
            compare(kd, rows, 1e-4 * lively.to(device))
            # Saturated: a log-sum-exp near 1e4 has a last bit of 1e-3.
            compare(kd, rows, 1e4 * lively.sign().to(device), rtol=2e-3)
        print(f"{name}: the same")


if __name__ == "__main__":
    main(sys.argv[1])
