"""How near does a training step come to the matrix products that nobody can avoid?

    python -m benchmarks.train_step [--documents 4 --length 150 --threads 2 --rounds 6 --bits 8 --precision auto]

The training loop's own step (forward, loss, backward, clipping, AdamW) on the quickstart's teacher with all of its
layers made ternary, frozen embeddings, and the bare products of the same shapes: for each ternary layer the forward
pass and the gradients of input and weight, for the head the logits and the gradient of the hidden states, operands
ready in autocast's dtype. Attention's products are left out, and no time is spent on padding: the documents are of one
length, and all but a sixth of a document is its answer.

A round is the products, a step by the compiled C++ and one by torch's operators, so that a busy machine disturbs all
of them. `products_fraction` is the median over the rounds of products / compiled step, `_cpu` that of the process's CPU
seconds; `speedup` is torch's step / compiled step.

`--profile` prints the time of each operator as well. The last line is one JSON object.
"""

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.bitlinear import CPU, WALL, Seconds, timed
from benchmarks.kd_loss import cpu_name
from bitnet_core.config.loss import TopKOtherConfig
from bitnet_core.config.student import StudentConfig
from bitnet_core.config.train import TrainConfig
from bitnet_core.distributed import ProcessGroup, Root
from bitnet_core.hardware import autocast_dtype, best_device, keep_freed_memory
from bitnet_core.kernels import cpu_training
from bitnet_core.losses.chunked import load_loss
from bitnet_core.model.init_from import build_student
from bitnet_core.model.modeling import BitNetKDEForCausalLM
from bitnet_core.ternary.bitlinear import ternary_layers
from bitnet_core.training.optimizer import make_optimizer
from bitnet_core.training.step import Learner, clipped_gradients, optimizer_step
from bitnet_providers.teachers.local.model_source import model_folder

TOP_K = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=4)
    parser.add_argument("--length", type=int, default=150, help="tokens of a document")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--bits", type=int, default=8, choices=[4, 8, 16])
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="torch.compile of the decoder layers")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    keep_freed_memory()

    device = best_device()
    student = StudentConfig(init_from=str(model_folder("smollm2-135m-instruct")), freeze_embeddings=True)
    model = build_student(student, None, 0).to(device)
    model.set_activation_bits(options.bits)
    batch = make_batch(options.documents, options.length, model.config.vocab_size)
    settings = TrainConfig(precision=options.precision, learning_rate=2e-4, scale_learning_rate=8e-4)
    if options.compile:
        for layer in model.model.layers:
            layer.compile()
    learner = Learner(
        root=Root(model),
        loss=load_loss(TopKOtherConfig(ce_weight=0.1, format_weight=0.1)),
        optimizer=make_optimizer(model, settings),
        scaler=torch.amp.GradScaler(device.type, enabled=False),
        settings=settings,
        group=ProcessGroup(0, 1, device),
    )
    losses: list[float] = []

    def step() -> None:
        sums, _ = clipped_gradients(learner, [batch])
        optimizer_step(learner, len(losses))
        losses.append(float(sums["loss"]))

    def step_by_torch() -> None:
        os.environ[cpu_training.SWITCH] = "0"
        step()
        del os.environ[cpu_training.SWITCH]

    work = make_products(model, batch, autocast_dtype(options.precision, device)), step, step_by_torch
    first = [timed(each, device.type) for each in work]  # makes the optimizer's moments, compiles
    rounds = [[timed(each, device.type) for each in work] for _ in range(options.rounds)]
    if options.profile:
        profile(step)
    print(json.dumps(result(options, rounds, first[1], losses)))


def result(
    options: argparse.Namespace, rounds: list[list[Seconds]], first: Seconds, losses: list[float]
) -> dict[str, Any]:
    products, compiled, plain = ([each[WALL] for each in column] for column in zip(*rounds, strict=True))
    fractions = [a / b for a, b in zip(products, compiled, strict=True)]
    step = statistics.median(compiled)
    return {
        "products_fraction": round(statistics.median(fractions), 3),
        "products_fraction_range": [round(min(fractions), 3), round(max(fractions), 3)],
        "products_fraction_cpu": round(statistics.median(a[CPU] / b[CPU] for a, b, _ in rounds), 3),
        "products_fraction_torch": round(statistics.median(a / b for a, b in zip(products, plain, strict=True)), 3),
        "speedup": round(statistics.median(b / a for a, b in zip(compiled, plain, strict=True)), 3),
        "step_seconds": round(step, 3),
        "step_seconds_torch": round(statistics.median(plain), 3),
        "first_step_seconds": round(first[WALL], 3),
        "products_seconds": round(statistics.median(products), 3),
        "tokens_per_second": round(options.documents * options.length / step, 1),
        "losses": [round(loss, 4) for loss in losses],
        "options": vars(options),
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "load_average": os.getloadavg()[0]},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def make_batch(documents: int, length: int, vocabulary: int) -> dict[str, Tensor]:
    """Documents of one length as `collate_fn` gives them: a sixth is prompt, the rest has KD targets."""
    shape_BT = (documents, length)
    ids_BT = torch.randint(0, vocabulary, shape_BT)
    is_prompt = (torch.arange(length) < length // 6).expand(shape_BT).contiguous()
    logprobs = torch.randn(*shape_BT, TOP_K + 1).log_softmax(-1)
    return {
        "input_ids": ids_BT,
        "attention_mask": torch.ones(shape_BT, dtype=torch.bool),
        "is_prompt": is_prompt,
        "has_kd": ~is_prompt,
        "is_struct_token": torch.zeros(shape_BT, dtype=torch.bool),
        "teacher_sample_id": ids_BT,
        # Distinct in a row: a step of 997 (a prime) doesn't come back within K steps.
        "topk_ids": (ids_BT[..., None] + 997 * torch.arange(TOP_K)) % vocabulary,
        "topk_logprobs": logprobs[..., :-1].contiguous(),
        "other_logprob": logprobs[..., -1].contiguous(),
    }


def make_products(model: BitNetKDEForCausalLM, batch: dict[str, Tensor], dtype: torch.dtype) -> Callable[[], None]:
    """One call computes what a step multiplies."""
    tokens, targets = batch["input_ids"].numel(), int((~batch["is_prompt"])[:, 1:].sum())
    device = model.device

    def operands(rows: int, weight_OI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        outputs, inputs = weight_OI.shape
        x_NI, grad_NO = (torch.randn(rows, width, dtype=dtype, device=device) for width in (inputs, outputs))
        return x_NI, weight_OI.detach().to(dtype), grad_NO

    layers = [operands(tokens, layer.weight) for _, layer in ternary_layers(model)]
    x_ND, head_VD, grad_NV = operands(targets, model.lm_head.weight)

    def products() -> None:
        for x_NI, weight_OI, grad_NO in layers:
            torch.mm(x_NI, weight_OI.T)
            torch.mm(grad_NO, weight_OI)
            torch.mm(grad_NO.T, x_NI)
        torch.mm(x_ND, head_VD.T)
        torch.mm(grad_NV, head_VD)

    return products


def profile(step: Callable[[], None]) -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        step()
    print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=40, max_name_column_width=60))


if __name__ == "__main__":
    main()
