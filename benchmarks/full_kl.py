"""KL(teacher ‖ student) over the whole vocabulary on held-out documents. N target positions, D width, V vocabulary.

The teacher is asked itself: top-K traces don't know how it spreads the rest.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from bitnet_core.bitlinear import quantised_once
from bitnet_core.evaluation.heldout import document_batches
from bitnet_core.hardware import autocast
from bitnet_core.losses import next_token_rows
from bitnet_core.model.modeling import BitNetKDEForCausalLM
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
def teacher_states(folder: Path, documents: KDTraceDataset, batch_size: int, device: torch.device) -> TeacherStates:
    teacher: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    batches = [
        {name: tensor.to(device) for name, tensor in batch.items()}
        for batch in document_batches(documents, batch_size, None)
    ]
    with autocast("auto", device):
        hidden = [
            next_token_rows(teacher.model(batch["input_ids"], batch["attention_mask"])[0], batch).hidden_ND
            for batch in batches
        ]
    return TeacherStates(batches, hidden, teacher.lm_head.weight.detach().clone())


@torch.no_grad()
def full_vocabulary_kl(student: BitNetKDEForCausalLM, teacher: TeacherStates, bits: int) -> float:
    """Mean KL in nats over the held-out target positions, with the student's activations at `bits`."""
    device = teacher.head_VD.device
    student.to(device).eval().set_activation_bits(bits)
    total, count = 0.0, 0
    with autocast("auto", device), quantised_once(student):
        for batch, teacher_ND in zip(teacher.batches, teacher.hidden_ND, strict=True):
            hidden_BTD = student.model(batch["input_ids"], batch["attention_mask"], use_cache=False).last_hidden_state
            student_ND = next_token_rows(hidden_BTD, batch).hidden_ND
            for ours_ND, theirs_ND in zip(student_ND.split(CHUNK), teacher_ND.split(CHUNK), strict=True):
                q_NV = (ours_ND @ student.lm_head.weight.T).float().log_softmax(-1)
                p_NV = (theirs_ND @ teacher.head_VD.T).float().log_softmax(-1)
                total += float(torch.nn.functional.kl_div(q_NV, p_NV, reduction="sum", log_target=True))
                count += len(q_NV)
    return total / count
