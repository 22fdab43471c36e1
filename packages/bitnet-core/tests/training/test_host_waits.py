"""A step is launched without a look at what it computes, and what is no number still stops the training."""

import copy
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from bitnet_core.config.dry_run import DryRunConfig
from bitnet_core.config.loss import TopKOtherConfig
from bitnet_core.config.train import TrainConfig
from bitnet_core.distributed import ProcessGroup, Root
from bitnet_core.dry_run.run_phases import full_batch
from bitnet_core.errors import CoreError
from bitnet_core.losses import chunked
from bitnet_core.losses.chunked import load_loss
from bitnet_core.losses.masks_and_rows import TARGET_PLACES
from bitnet_core.model import BitNetKDEConfig, BitNetKDEForCausalLM
from bitnet_core.model.choose_checkpoint import checkpoints
from bitnet_core.model.init_from import build_student
from bitnet_core.training import loop
from bitnet_core.training.metrics import StepFigures
from bitnet_core.training.micro_batch import UNPADDED
from bitnet_core.training.optimizer import make_optimizer
from bitnet_core.training.step import Learner, checkpoint_activations, clipped_gradients, optimizer_step

ATEN = torch.ops.aten
WAITS = {
    ATEN._local_scalar_dense.default, ATEN.nonzero.default, ATEN.equal.default, ATEN.masked_select.default,
    ATEN._unique2.default, ATEN.bincount.default,
}  # fmt: skip
"""What makes the host wait for a GPU: its value, or its shape, is the device's."""
COPIES = {ATEN._to_copy.default, ATEN.copy_.default}


def devices(func: Any, args: Any, kwargs: Any) -> set[str]:
    """Kinds of device between which a tensor is copied."""
    to = (kwargs or {}).get("device") if func is ATEN._to_copy.default else args[1].device
    return {args[0].device.type, args[0].device.type if to is None else torch.device(to).type}


class CountsWaits(TorchDispatchMode):
    """By the file that asks. Copies between CPU and GPU are waited for too, unless they are told not to be."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = func is ATEN.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1])
        between = func in COPIES and not (kwargs or {}).get("non_blocking") and len(devices(func, args, kwargs)) > 1
        if func in WAITS or by_mask or between:
            files = [Path(frame.filename) for frame in traceback.extract_stack()]
            asks = [file for file in files if {"bitnet_core", "transformers"} & set(file.parts)]
            self.found[f"{asks[-1].name if asks else '?'}: {func}"] += 1
        return func(*args, **(kwargs or {}))


class NoLoss:
    """Stands for the loss's kernel: every row's is 0."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, **constants: Any) -> None:
            for place in (6, 7):  # values, and negative log-likelihoods
                arguments[place].zero_()

        return launch


@pytest.mark.parametrize("changes", [{}, {"max_seq_len": 8}, {"packing": True}], ids=["padded", "unpadded", "packed"])
def test_a_training_step_asks_the_device_nothing(
    run: Any, settings: TrainConfig, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step as a GPU has it, with all that is around the loss's kernel."""
    chunk_triton = pytest.importorskip("bitnet_core.losses.chunk_triton", reason="torch brings Triton on Linux only")
    found: Counter[str] = Counter()
    learn = loop.learn

    def counted(*arguments: Any) -> StepFigures:
        with CountsWaits(found):
            return learn(*arguments)

    monkeypatch.setattr(loop, "learn", counted)
    monkeypatch.setattr(chunk_triton, "_row", NoLoss())
    monkeypatch.setattr(chunked, "has_kernel", lambda *_: True)
    run("a", attrs.evolve(settings, steps=3, validate_every=0, accumulation=2, **changes))
    assert found.total() == 0, found
    with CountsWaits(found):
        torch.ones(1).item()
    assert found["?: aten._local_scalar_dense.default"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("unpadded", [False, True])
def test_a_step_on_a_gpu_that_is_not_here(unpadded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On fake CUDA tensors: every tensor is on the device that it is computed with, and none goes to and fro.

    All but the backward pass and autocast, for which torch wants a real GPU.
    """
    chunk_triton = pytest.importorskip("bitnet_core.losses.chunk_triton", reason="torch brings Triton on Linux only")
    monkeypatch.setattr(chunk_triton, "_row", NoLoss())
    monkeypatch.setattr(chunked, "has_kernel", lambda *_: True)
    config = DryRunConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, batch_size=2, context=16, top_k=4,
    )  # fmt: skip
    device, found = torch.device("cuda"), Counter[str]()
    settings = TrainConfig(precision="fp32", gradient_checkpointing=True).begun_from("random")
    places = torch.tensor([[row, place] for row in range(2) for place in range(15 if row == 0 else 14)])
    with FakeTensorMode(allow_non_fake_inputs=True):
        with device, monkeypatch.context() as building:
            building.setattr(torch, "equal", lambda *_: False)  # least squares would end early, by values
            model = build_student(config.student(), None, config.vocab_size).train()
        checkpoint_activations(model)
        learner = Learner(
            root=Root(model), loss=load_loss(TopKOtherConfig(ce_weight=0.1)), optimizer=make_optimizer(model, settings),
            scaler=torch.amp.GradScaler("cuda", enabled=False), settings=settings, group=ProcessGroup(0, 1, device),
        )  # fmt: skip
        batch = full_batch(config, device) | {TARGET_PLACES: places.to(device)}
        if unpadded:
            batch[UNPADDED] = torch.ones(1, device=device)

        def backward(value: Tensor) -> None:
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter) * value.detach()

        monkeypatch.setattr(Tensor, "backward", backward)
        for step in range(2):
            with CountsWaits(found):
                sums, norm = clipped_gradients(learner, [batch])
                optimizer_step(learner, step)
        assert {each.device.type for each in (*sums.values(), norm, *model.parameters())} == {"cuda"}
        assert found.total() == 0, found
        with CountsWaits(found):
            norm.cpu()
    assert found.total() == 1


@pytest.mark.slow
def test_a_compiled_layer_is_one_graph_on_a_gpu_that_is_not_here() -> None:
    """As Dynamo traces it with fake CUDA tensors; what Inductor makes of it needs the GPU."""
    config = BitNetKDEConfig(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64,
    )  # fmt: skip
    graphs = []

    def noted(graph: Any, example: Any) -> Any:
        graphs.append(graph)
        return graph

    model = BitNetKDEForCausalLM(config).train()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.device("cuda"):
        layer = copy.deepcopy(model.model.layers[0])
        for module in layer.modules():
            for name, weight in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(torch.empty(weight.shape)))
        hidden_BTD = torch.empty(2, 16, 64)
        rotations = (torch.empty(2, 16, 32), torch.empty(2, 16, 32))
        mask = torch.empty(2, 1, 16, 16, dtype=torch.bool)
        compiled = torch.compile(layer, backend=noted, fullgraph=True)
        found_BTD = compiled(hidden_BTD, attention_mask=mask, position_embeddings=rotations)
    assert (len(graphs), found_BTD.device.type, found_BTD.shape) == (1, "cuda", hidden_BTD.shape)
    assert isinstance(found_BTD, FakeTensor)
    assert found_BTD.fake_mode is mode


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, which says itself where it is waited for")
@pytest.mark.parametrize("precision", ["fp32", "auto", "fp16"])
def test_on_a_gpu_a_training_step_is_not_waited_for(
    run: Any, settings: TrainConfig, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp16's scaled loss among them."""
    learn = loop.learn

    def strict(session: Any, micro_batches: Any, step: int) -> StepFigures:
        torch.cuda.set_sync_debug_mode("error" if step else "default")  # the first one loads libraries
        try:
            return learn(session, micro_batches, step)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(loop, "learn", strict)
    summary = run("a", attrs.evolve(settings, steps=6, precision=precision, flip_fraction=1.0))
    assert summary["device"] == "cuda"
    assert summary["last"]["loss"] < 4


def test_figures_are_read_a_step_later_unless_logged_or_saved(
    run: Any, settings: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[tuple[str, int]] = []
    learn, read = loop.learn, StepFigures.read

    def noted_learn(session: Any, micro_batches: Any, step: int) -> StepFigures:
        order.append(("learn", step))
        return learn(session, micro_batches, step)

    def noted_read(figures: StepFigures) -> dict[str, float]:
        order.append(("read", figures.step))
        return read(figures)

    monkeypatch.setattr(loop, "learn", noted_learn)
    monkeypatch.setattr(StepFigures, "read", noted_read)
    run("a", attrs.evolve(settings, steps=9, log_every=4, checkpoint_every=6, validate_every=0))
    position = {event: place for place, event in enumerate([*order, ("learn", 9)])}
    at_once = {step for step in range(9) if position["read", step] < position["learn", step + 1]}
    assert at_once == {0, 3, 5, 7, 8}  # the first, each fourth, the checkpoint's, each fourth, the last
    assert [step for what, step in order if what == "read"] == list(range(9)), "each is looked at, once"
    for step in set(range(9)) - at_once:
        assert position["read", step] == position["learn", step + 1] + 1


@pytest.mark.parametrize(("poisoned_step", "saved"), [(6, ["step_5"]), (9, ["step_5"])])
def test_what_is_no_number_stops_with_its_own_batch_before_a_checkpoint(
    run: Any, settings: TrainConfig, tmp_path: Path, poisoned_step: int, saved: list[str]
) -> None:
    """Step 9 is the one before the checkpoint step_10: counted from 0, it is saved itself."""
    plain, seen = load_loss(TopKOtherConfig()), list[Tensor]()

    def poisoned(hidden: Any, head: Any, batch: Any, normaliser: Any) -> Any:
        value, metrics = plain(hidden, head, batch, normaliser)
        seen.append(batch["input_ids"])
        return (value * float("nan") if len(seen) == poisoned_step + 1 else value), metrics

    rarely = attrs.evolve(settings, log_every=100, validate_every=0)
    with pytest.raises(CoreError, match=f"became nan at step {poisoned_step};"):
        run("a", rarely, loss=poisoned)
    assert [path.name for path in checkpoints(tmp_path / "a/checkpoints")] == saved
    batch = load_file(tmp_path / f"a/nonfinite_batch_step_{poisoned_step}.safetensors")
    assert torch.equal(batch["input_ids"], seen[poisoned_step])
    assert len(seen) == poisoned_step + (2 if poisoned_step == 6 else 1)
