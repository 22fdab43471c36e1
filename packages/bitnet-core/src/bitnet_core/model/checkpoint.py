"""Reading a checkpoint: its model, its tokenizer and its counters, without the optimizer. Written by
`bitnet_core.training.checkpoint`.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
from safetensors import SafetensorError

from bitnet_core.errors import CoreError
from bitnet_core.model.modeling import BitNetKDEForCausalLM
from bitnet_core.tokenizer_files import copy_tokenizer as copy_tokenizer  # a checkpoint's other half


def model_type(folder: Path) -> str:
    """``model_type`` of the folder's config.json. Raises CoreError where it can't be read."""
    file = folder / "config.json"
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CoreError(f"{file}: can't be read ({error!r}); the model is damaged: name another one") from error


FORMAT_VERSION = 1


@attrs.frozen
class TrainingState:
    """The counters of a run; everything else follows from them and the settings."""

    step: int
    """Optimizer steps done."""
    batches: int
    """Batches read, over all epochs."""
    seen_tokens: int
    """Tokens seen, padding not counted."""
    bits: int
    """Activation bits of the last step."""
    fingerprint: str
    """Names everything that shapes the training; another one means another training."""
    projection: str | None = None
    """The id of the projection that made the traces; None where they don't say."""
    last: Mapping[str, Any] = attrs.field(factory=dict)
    """The last step's row of metrics."""


def damaged(file: Path, error: object) -> CoreError:
    return CoreError(f"{file}: not a complete checkpoint ({error}); delete the folder {file.parent} and run again")


def load_model(checkpoint: Path) -> BitNetKDEForCausalLM:
    """The student of `checkpoint`; CoreError where its files are damaged."""
    try:
        found: Any = BitNetKDEForCausalLM.from_pretrained(checkpoint, output_loading_info=True)
    except SafetensorError as error:
        raise damaged(checkpoint / "model.safetensors", error) from error
    except Exception as error:  # transformers checks a config with a library whose errors are plain Exceptions
        weights = checkpoint / "model.safetensors"
        raise damaged(weights if not weights.is_file() else checkpoint / "config.json", error) from error
    model, report = found
    # transformers fills what it doesn't find with random numbers.
    if report["missing_keys"] or report["unexpected_keys"]:
        names = sorted({*report["missing_keys"], *report["unexpected_keys"]})
        raise damaged(checkpoint / "model.safetensors", f"other tensors than the model's: {names[0]}, ...")
    loaded: BitNetKDEForCausalLM = model
    return loaded


def read_state(checkpoint: Path) -> TrainingState:
    """The counters of one checkpoint; CoreError if it was written by another version or is damaged."""
    try:
        record: dict[str, Any] = json.loads((checkpoint / "training.json").read_text())
        version = record.pop("version")
        if version != FORMAT_VERSION:
            raise CoreError(
                f"{checkpoint}: checkpoint format {version}, this version reads {FORMAT_VERSION}; "
                "train again with `--from train`, or use the version that wrote it"
            )
        return TrainingState(**record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(checkpoint / "training.json", error) from error


def checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints in `folder`, oldest first."""
    found = [path for path in folder.glob("step_*") if path.is_dir() and path.name[5:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[5:]))


def latest_checkpoint(folder: Path) -> Path:
    found = checkpoints(folder)
    if not found:
        raise CoreError(f"{folder}: there is no checkpoint; run the train stage first")
    return found[-1]


def best_checkpoint(folder: Path) -> Path:
    """The one with the lowest held-out KL when it was written; the newest where none was validated."""
    found = checkpoints(folder)

    def key(path: Path) -> tuple[float, int]:
        kl = read_state(path).last.get("heldout_kl")
        return (math.inf if kl is None else float(kl), -found.index(path))

    return min(found, key=key)
