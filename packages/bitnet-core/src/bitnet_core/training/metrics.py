"""The metrics that are logged: a step's figures, neither smoothed nor clipped, and where they go.

``logs/metrics.jsonl`` has one JSON object a logged step; TensorBoard and Weights & Biases get the same. The figures of
a step are read when they have arrived from the device, so that the host need not wait for a step that it is still at.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from bitnet_core.errors import CoreError
from bitnet_core.files import write_text
from bitnet_core.model.read_checkpoint import TrainingState

Track = Callable[[Mapping[str, Any]], None]


def open_trackers(
    names: Sequence[str], folder: Path, settings: Mapping[str, Any], stack: ExitStack, done: int = 0
) -> Track:
    """One function that sends a row of metrics (with its ``step``) to all of them; `stack` closes them.

    done: steps that are done. What TensorBoard has of later ones, by a killed run or another training, is hidden.
    `folder` takes their files. W&B follows its own environment variables (``WANDB_MODE=offline`` ...). Raises CoreError
    where a package is missing.
    """
    sinks = [_OPENERS[name](folder / name, settings, stack, done) for name in names]

    def track(row: Mapping[str, Any]) -> None:
        numbers = {key: value for key, value in row.items() if isinstance(value, int | float) and key != "step"}
        for sink in sinks:
            sink(numbers, int(row["step"]))

    return track


Sink = Callable[[dict[str, Any], int], None]


def _tensorboard(folder: Path, settings: Mapping[str, Any], stack: ExitStack, done: int) -> Sink:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise _missing("tensorboard") from error
    writer = SummaryWriter(str(folder), purge_step=done + 1)
    stack.callback(writer.close)
    writer.add_text("settings", "\n".join(f"    {key}: {value}" for key, value in settings.items()))

    def write(numbers: dict[str, Any], step: int) -> None:
        for name, value in numbers.items():
            writer.add_scalar(f"train/{name}", value, step)

    return write


def _wandb(folder: Path, settings: Mapping[str, Any], stack: ExitStack, _: int) -> Sink:
    try:
        import wandb
    except ImportError as error:
        raise _missing("wandb") from error
    folder.mkdir(parents=True, exist_ok=True)
    run = wandb.init(dir=str(folder), config=dict(settings), resume="allow")
    stack.callback(run.finish)
    return lambda numbers, step: run.log(numbers, step=step)


_OPENERS = {"tensorboard": _tensorboard, "wandb": _wandb}


def _missing(name: str) -> CoreError:
    return CoreError(f'train.track = ["{name}"] needs its package', f"pip install 'bitnet-core[{name}]'")


def tokens_per_second_from(seen_tokens: int) -> Callable[[int], float]:
    """A clock that starts now: given the tokens that are seen by then, tokens a second since."""
    started = time.monotonic()
    return lambda seen: (seen - seen_tokens) / (time.monotonic() - started)


def metrics_row(state: TrainingState, figures: Mapping[str, float], tokens_per_second: float) -> dict[str, Any]:
    """A step's row. `figures`: the loss and its parts, ``lr``, ``grad_norm``."""
    return {
        "step": state.step,
        "seen_tokens": state.seen_tokens,
        **figures,
        "bits": state.bits,
        "tokens_per_second": tokens_per_second,
    }


def append_row(file: Path, row: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(row) + "\n")


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows in order; what is no row (a line cut by a kill, junk) is left out. Empty without the file."""
    if not file.exists():
        return []
    rows = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def keep_rows_up_to(file: Path, step: int) -> None:
    """Drop the metrics that a killed run wrote after its last checkpoint: they will be written again."""
    if file.exists():
        write_text(file, "".join(json.dumps(row) + "\n" for row in read_rows(file) if row["step"] <= step))


def progress_note(row: Mapping[str, Any], budget: int, steps: int) -> str:
    """A step in one line: its losses, the speed, and the time to the last step, or to the budget if that is nearer."""
    speed = row["tokens_per_second"]
    parts = "  ".join(f"{name} {row[name]:.3f}" for name in ("loss", "kd", "ce", "hidden", "relation") if name in row)
    seen = row["seen_tokens"]
    left = max(0, min(budget - seen, (steps - row["step"]) * seen / row["step"])) / speed
    rest = f"{left:.0f} s left" if left < 100 else f"{left / 60:.0f} min left"
    return f"{parts}  A{row['bits']}  {speed:,.0f} tok/s  {rest}"


@attrs.frozen(kw_only=True, eq=False)
class StepFigures:
    """Of one optimizer step."""

    step: int
    """0-based"""
    micro_batches: Sequence[Mapping[str, Tensor]]
    """That it learnt from, on the CPU."""
    names: tuple[str, ...]
    values: Tensor
    """float64, on the CPU; what they are isn't known before `arrived`."""
    arrived: torch.cuda.Event | None

    def read(self) -> dict[str, float]:
        """The values by name. Waits for them where they are still on their way."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return dict(zip(self.names, self.values.tolist(), strict=True))


def sent_to_host(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """`values` on the CPU, and the event after which they are there (None: now)."""
    if values.device.type != "cuda":
        return values.cpu(), None
    on_host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    on_host.copy_(values, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return on_host, arrived
