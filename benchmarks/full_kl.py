"""A student beside its teacher on held-out documents: KL over the whole vocabulary, perplexity, one text for both.

N target positions, D width, V vocabulary; nats.

The teacher is asked itself: top-K traces don't know how it spreads the rest.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from bitnet_core.evaluation.heldout import document_batches
from bitnet_core.hardware import autocast
from bitnet_core.losses.masks_and_rows import next_token_rows
from bitnet_core.model.modeling import BitNetKDEForCausalLM
from bitnet_core.ternary.bitlinear import quantised_once
from bitnet_core.traces.dataset import KDTraceDataset

CHUNK = 512
"""Positions whose two rows of log-probabilities exist at a time."""


@attrs.frozen(eq=False)
class TeacherStates:
    """What the teacher thinks of the held-out documents, as hidden states: its head makes logits of them."""

    batches: Sequence[dict[str, Tensor]]
    hidden_ND: Sequence[Tensor]
    """Of each batch's target positions"""
    head_VD: Tensor


@torch.no_grad()
def teacher_states(
    folder: Path, documents: KDTraceDataset, batch_size: int, device: torch.device, limit: int | None = None
) -> TeacherStates:
    """limit: documents at most, the first ones."""
    teacher: Any = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).to(device).eval()
    )
    batches = [
        {name: tensor.to(device) for name, tensor in batch.items()}
        for batch in document_batches(documents, batch_size, limit)
    ]
    with autocast("auto", device):
        hidden = [
            next_token_rows(teacher.model(batch["input_ids"], batch["attention_mask"])[0], batch).hidden_ND
            for batch in batches
        ]
    return TeacherStates(batches, hidden, teacher.lm_head.weight.detach().clone())


@attrs.frozen
class Distance:
    """How far a student is from its teacher."""

    kl: float
    """Mean KL(teacher ‖ student) over the held-out target positions"""
    perplexity_ratio: float
    """The student's perplexity over the teacher's"""


@torch.no_grad()
def distance(student: BitNetKDEForCausalLM, teacher: TeacherStates, bits: int) -> Distance:
    """With the student's activations at `bits`."""
    device = teacher.head_VD.device
    student.to(device).eval().set_activation_bits(bits)
    kl, excess, count = 0.0, 0.0, 0
    with autocast("auto", device), quantised_once(student):
        for batch, teacher_ND in zip(teacher.batches, teacher.hidden_ND, strict=True):
            hidden_BTD = student.model(batch["input_ids"], batch["attention_mask"], use_cache=False).last_hidden_state
            rows = next_token_rows(hidden_BTD, batch)
            parts = (rows.hidden_ND.split(CHUNK), teacher_ND.split(CHUNK), rows.target.split(CHUNK))
            for ours_ND, theirs_ND, target_N in zip(*parts, strict=True):
                q_NV = (ours_ND @ student.lm_head.weight.T).float().log_softmax(-1)
                p_NV = (theirs_ND @ teacher.head_VD.T).float().log_softmax(-1)
                kl += float(torch.nn.functional.kl_div(q_NV, p_NV, reduction="sum", log_target=True))
                excess += float((p_NV - q_NV).gather(-1, target_N[:, None]).sum())
                count += len(q_NV)
    return Distance(kl / count, math.exp(excess / count))
