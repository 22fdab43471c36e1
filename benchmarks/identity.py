"""What does each KD loss say of a student that is its teacher?

    python -m benchmarks.identity [--positions 32 --vocabulary 49152 --k 20]

The teacher's logits are Gaussian, flat (standard deviation 1) or peaked (4); it gives its top K, and the mass of the
rest where a loss reads it. Three students: the teacher itself; one that says the teacher's top K in the right
proportions, but all together half as often; and, for scale, one that knows nothing (uniform). In float64, by the plain
losses; no training. Beside ours, the forms that most code has:

- renormalised: the teacher's top K scaled to 1, at τ, against the student's whole softmax(z/τ)
- renormalised on both sides: the student's logits of these K scaled to 1 as well; the rest is not looked at
- tempered, then coarsened: softmax(z/τ) of the student put into K + 1 buckets, against the teacher's K + 1 masses at τ

Printed are the loss in nats and the sum of the absolute gradient by the logits: how much probability it wants to move.
The last line is one JSON object.
"""

import argparse
import json
import platform
from collections.abc import Callable

import attrs
import torch
from torch import Tensor

from bitnet_core.losses.divergences import REVERSE_KL, jensen_shannon
from bitnet_core.losses.reference import (
    kd_by_position,
    kl_from_logprobs,
    student_buckets,
    teacher_buckets,
    tempered_by_position,
)

TAUS = (1.0, 1.3, 2.0, 4.0)
SPREADS = {"flat": 1.0, "peaked": 4.0}


@attrs.frozen(eq=False)
class Teacher:
    """N positions, V vocabulary, K candidates; log-probabilities in nats."""

    logits_NV: Tensor
    ids_NK: Tensor
    logprobs_NK: Tensor
    other_N: Tensor


Form = Callable[[Tensor, Teacher, float], Tensor]
"""Student's logits [N, V], teacher and τ in; losses [N] out"""


def teacher_of(spread: float, options: argparse.Namespace) -> Teacher:
    generator = torch.Generator().manual_seed(0)
    logits = spread * torch.randn(options.positions, options.vocabulary, dtype=torch.float64, generator=generator)
    logprobs = logits.log_softmax(-1)
    top = logprobs.topk(options.k, dim=-1)
    other = logprobs.scatter(-1, top.indices, -torch.inf).logsumexp(-1)
    return Teacher(logits, top.indices, top.values, other)


def bucketed(divergence: Callable[[Tensor, Tensor], Tensor] = kl_from_logprobs) -> Form:
    return lambda z, t, tau: kd_by_position(z, t.ids_NK, t.logprobs_NK, t.other_N, tau, divergence)


def with_log_z(z: Tensor, t: Teacher, tau: float) -> Tensor:
    log_z = (t.logits_NV.log_softmax(-1) / tau).logsumexp(-1)
    return tempered_by_position(z, t.ids_NK, t.logprobs_NK, log_z, tau)


def renormalised(z: Tensor, t: Teacher, tau: float) -> Tensor:
    teacher = (t.logprobs_NK / tau).log_softmax(-1)
    return tau**2 * kl_from_logprobs(teacher, (z / tau).log_softmax(-1).gather(-1, t.ids_NK))


def renormalised_on_both_sides(z: Tensor, t: Teacher, tau: float) -> Tensor:
    teacher = (t.logprobs_NK / tau).log_softmax(-1)
    return tau**2 * kl_from_logprobs(teacher, (z.gather(-1, t.ids_NK) / tau).log_softmax(-1))


def tempered_then_coarsened(z: Tensor, t: Teacher, tau: float) -> Tensor:
    student = student_buckets(z / tau, t.ids_NK, torch.ones_like(t.ids_NK, dtype=torch.bool))
    return tau**2 * kl_from_logprobs(teacher_buckets(t.logprobs_NK, t.other_N, tau, z.dtype), student)


FORMS: dict[str, Form] = {
    "topk_other": bucketed(),
    "reverse_kl": bucketed(REVERSE_KL.value),
    "jsd": bucketed(jensen_shannon(0.5).value),
    "tempered": with_log_z,
    "renormalised": renormalised,
    "renormalised on both sides": renormalised_on_both_sides,
    "tempered, then coarsened": tempered_then_coarsened,
}


def half_as_often(teacher: Teacher) -> Tensor:
    """The logits of a student that gives the top K half the mass that the teacher gives them, the rest the other."""
    top_N = teacher.logprobs_NK.exp().sum(-1)
    shift_N = (top_N / 2).log() - top_N.log() + teacher.other_N - (1 - top_N / 2).log()
    logprobs = teacher.logits_NV.log_softmax(-1)
    return logprobs.scatter_add(-1, teacher.ids_NK, shift_N[:, None].expand_as(teacher.logprobs_NK))


def figures(form: Form, logits_NV: Tensor, teacher: Teacher, tau: float) -> dict[str, float]:
    z_NV = logits_NV.detach().clone().requires_grad_()
    loss_N = form(z_NV, teacher, tau)
    (gradient_NV,) = torch.autograd.grad(loss_N.sum(), z_NV)
    moved = gradient_NV.abs().sum(-1).mean()
    return {"loss": float(f"{float(loss_N.detach().mean()):.3g}"), "gradient": float(f"{float(moved):.3g}")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=32)
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--k", type=int, default=20)
    options = parser.parse_args()
    results = []
    for shape, spread in SPREADS.items():
        teacher = teacher_of(spread, options)
        students = {
            "teacher": teacher.logits_NV,
            "half as often": half_as_often(teacher),
            "uniform": torch.zeros_like(teacher.logits_NV),
        }
        mass = float(teacher.logprobs_NK.exp().sum(-1).mean())
        for name, form in FORMS.items():
            for tau in TAUS:
                row = {who: figures(form, logits, teacher, tau) for who, logits in students.items()}
                results.append({"logits": shape, "top_k_mass": round(mass, 4), "form": name, "tau": tau} | row)
                shown = ", ".join(f"{who} {each['loss']} (moves {each['gradient']})" for who, each in row.items())
                print(f"{shape} teacher, {name}, τ {tau}: {shown}")
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    print(json.dumps({"results": results, "options": vars(options), "versions": versions}))


if __name__ == "__main__":
    main()
