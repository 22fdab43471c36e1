"""A step is launched without a look at what it computes, and what is no number still stops the training."""

import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bitnet_core.config.loss import TopKOtherConfig
from bitnet_core.config.train import TrainConfig
from bitnet_core.errors import CoreError
from bitnet_core.losses import chunked
from bitnet_core.losses.chunked import load_loss
from bitnet_core.model.read_checkpoint import checkpoints
from bitnet_core.training import loop
from bitnet_core.training.device_transfers import StepFigures

ATEN = torch.ops.aten
WAITS = {
    ATEN._local_scalar_dense.default, ATEN.nonzero.default, ATEN.equal.default, ATEN.masked_select.default,
    ATEN._unique2.default, ATEN.bincount.default,
}  # fmt: skip
"""What makes the host wait for a GPU: its value, or its shape, is the device's."""


class CountsWaits(TorchDispatchMode):
    """By the file that asks."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = func is ATEN.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1])
        if func in WAITS or by_mask:
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


def test_a_training_step_asks_the_device_nothing(
    run: Any, settings: TrainConfig, monkeypatch: pytest.MonkeyPatch
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
    run("a", attrs.evolve(settings, steps=3, validate_every=0, accumulation=2))
    # transformers asks once or twice for each of six micro-batches whether anything is padded
    theirs = sum(count for name, count in found.items() if name.startswith("masking_utils.py: aten._local_scalar"))
    assert found.total() - theirs == 0, found
    assert theirs <= 12
    with CountsWaits(found):
        torch.ones(1).item()
    assert found["?: aten._local_scalar_dense.default"] == 1


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
