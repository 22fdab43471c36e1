"""Where metrics go beside logs/metrics.jsonl: TensorBoard and Weights & Biases, each behind its own extra."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bitnet_core.errors import CoreError

Track = Callable[[Mapping[str, Any]], None]


def open_trackers(names: Sequence[str], folder: Path, settings: Mapping[str, Any], stack: ExitStack) -> Track:
    """One function that sends a row of metrics (with its ``step``) to all of them; `stack` closes them.

    `folder` takes their files. W&B follows its own environment variables (``WANDB_MODE=offline`` ...). Raises CoreError
    where a package is missing.
    """
    sinks = [_OPENERS[name](folder / name, settings, stack) for name in names]

    def track(row: Mapping[str, Any]) -> None:
        numbers = {key: value for key, value in row.items() if isinstance(value, int | float) and key != "step"}
        for sink in sinks:
            sink(numbers, int(row["step"]))

    return track


def _tensorboard(folder: Path, settings: Mapping[str, Any], stack: ExitStack) -> Callable[[dict[str, Any], int], None]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise _missing("tensorboard") from error
    writer = SummaryWriter(str(folder))
    stack.callback(writer.close)
    writer.add_text("settings", "\n".join(f"    {key}: {value}" for key, value in settings.items()))

    def write(numbers: dict[str, Any], step: int) -> None:
        for name, value in numbers.items():
            writer.add_scalar(f"train/{name}", value, step)

    return write


def _wandb(folder: Path, settings: Mapping[str, Any], stack: ExitStack) -> Callable[[dict[str, Any], int], None]:
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
    return CoreError(f"train.track = [\"{name}\"] needs its package: pip install 'bitnet-core[{name}]'")
