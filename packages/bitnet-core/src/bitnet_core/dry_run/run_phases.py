"""The phases of a student's life, run by the real model, loss and optimizer. B sequences, T positions, K candidates.

On fake tensors they are a prediction, on real ones a measurement: the code is the same.
"""

import gc
from typing import Protocol

import torch
from torch import Tensor

from bitnet_core.config.dry_run import DryRunConfig
from bitnet_core.config.loss import TopKOtherConfig
from bitnet_core.config.train import TrainConfig
from bitnet_core.distributed import ProcessGroup, Root
from bitnet_core.hardware import autocast
from bitnet_core.losses.chunked import load_loss
from bitnet_core.model.init_from import build_student
from bitnet_core.model.kv_cache import cache_of, named
from bitnet_core.ternary.bitlinear import quantised_once
from bitnet_core.training.optimizer import make_optimizer
from bitnet_core.training.step import Learner, checkpoint_activations, clipped_gradients, optimizer_step

PHASES = ("load", "prefill", "decode", "train_a8", "train_a4")
"""`train_a8` is the first step (it makes the moments), `train_a4` one after the flip to 4 bits."""


class Meter(Protocol):
    """Peak bytes since the last reset."""

    def reset(self) -> None: ...
    def peak(self) -> int: ...


def run_phases(config: DryRunConfig, device: torch.device, meter: Meter, *, train: bool = True) -> dict[str, int]:
    """Runs every phase on `device`; the peak bytes of each, by the names in PHASES. `train`: those two as well."""
    peaks: dict[str, int] = {}

    def measured(name: str) -> None:
        peaks[name] = meter.peak()
        gc.collect()  # a model has cycles; what a phase leaves must not be the next one's
        meter.reset()

    meter.reset()
    with device:
        model = build_student(config.student(), None, config.vocab_size)
    model.config._attn_implementation = config.attention
    measured("load")

    with torch.no_grad(), autocast(config.precision, device), quantised_once(model.eval()):
        ids_BT = torch.zeros(config.batch_size, config.context, dtype=torch.int64, device=device)
        cache = cache_of(model(ids_BT[:, :-1], use_cache=True, logits_to_keep=1))
        measured("prefill")
        model(ids_BT[:, -1:], logits_to_keep=1, **named(cache))
        del cache, ids_BT
        measured("decode")

    if not train:
        return peaks
    settings = TrainConfig(
        optimizer=config.optimizer,
        precision=config.precision,
        gradient_checkpointing=config.gradient_checkpointing,
        batch_size=config.batch_size,
        max_seq_len=config.context,
    )
    model.train()
    if settings.gradient_checkpointing:
        checkpoint_activations(model)
    learner = Learner(
        root=Root(model),
        loss=load_loss(TopKOtherConfig(chunk_tokens=config.chunk_tokens)),
        optimizer=make_optimizer(model, settings),
        scaler=torch.amp.GradScaler(device.type, enabled=False),
        settings=settings,
        group=ProcessGroup(0, 1, device),
    )
    for bits in (8, 4):
        model.set_activation_bits(bits)
        clipped_gradients(learner, [full_batch(config, device)])
        optimizer_step(learner, 0)
        measured(f"train_a{bits}")
    return peaks


def full_batch(config: DryRunConfig, device: torch.device) -> dict[str, Tensor]:
    """A batch as `collate_fn` gives it: every position is an answer's, with all candidates.

    The very last position is padding, as training batches have it: attention then takes a mask.
    """
    shape_BT, shape_BTK = (config.batch_size, config.context), (config.batch_size, config.context, config.top_k)
    true_BT = torch.ones(shape_BT, dtype=torch.bool, device=device)
    mask_BT = true_BT.clone()
    mask_BT[-1, -1] = False
    uniform = -torch.tensor(float(config.vocab_size)).log().item()
    ids_BTK = torch.arange(config.top_k, device=device).expand(shape_BTK).contiguous()
    return {
        "input_ids": torch.zeros(shape_BT, dtype=torch.int64, device=device),
        "attention_mask": mask_BT,
        "is_prompt": ~true_BT,
        "has_kd": true_BT,
        "is_struct_token": true_BT.clone(),
        "teacher_sample_id": torch.zeros(shape_BT, dtype=torch.int64, device=device),
        "topk_ids": ids_BTK,
        "topk_logprobs": torch.full(shape_BTK, uniform, device=device),
        "other_logprob": torch.full(shape_BT, uniform, device=device),
    }
