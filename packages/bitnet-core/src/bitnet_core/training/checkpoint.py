"""Checkpoints: a folder ``step_N`` that transformers opens, plus what training needs to go on.

``model.safetensors``, ``config.json`` and the tokenizer make it loadable; ``training.safetensors`` holds the
optimizer's moments and the random state, ``training.json`` the counters. Nothing in it is unpickled. The folder is
written under another name and renamed, so a half-written one is never seen.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from bitnet_core.errors import CoreError

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
    """Activation bits in force."""
    fingerprint: str
    """Names everything that shapes the training; another one means another training."""


def save_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: TrainingState, tokenizer_folder: Path
) -> Path:
    """Write ``folder/step_N`` atomically and return it."""
    target = folder / f"step_{state.step}"
    partial = folder / f".step_{state.step}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    model.save_pretrained(partial)  # type: ignore[operator]
    copy_tokenizer(tokenizer_folder, partial)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tensors = {"rng": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["rng_cuda"] = torch.cuda.get_rng_state()
    for parameter, moments in optimizer.state.items():
        tensors |= {f"{names[id(parameter)]}/{key}": value.contiguous() for key, value in moments.items()}
    save_file(tensors, partial / "training.safetensors")
    (partial / "training.json").write_text(json.dumps({"version": FORMAT_VERSION} | attrs.asdict(state), indent=1))
    for file in partial.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    return target


def load_optimizer(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put the moments and the random state of `checkpoint` back."""
    tensors = load_file(checkpoint / "training.safetensors")
    torch.set_rng_state(tensors.pop("rng"))
    rng_cuda = tensors.pop("rng_cuda", None)
    if rng_cuda is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(rng_cuda)
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        name, moment = key.rsplit("/", 1)
        # AdamW keeps its step counter on the CPU unless it is fused on an accelerator.
        optimizer.state[parameters[name]][moment] = value.to(parameters[name].device)


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
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CoreError(
            f"{checkpoint}: not a complete checkpoint ({error}); delete that folder and run again"
        ) from error


def checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints in `folder`, oldest first."""
    found = [path for path in folder.glob("step_*") if path.is_dir() and path.name[5:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[5:]))


def latest_checkpoint(folder: Path) -> Path:
    found = checkpoints(folder)
    if not found:
        raise CoreError(f"{folder}: there is no checkpoint; run the train stage first")
    return found[-1]


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer's files of one model folder into another, so that the checkpoint stands alone."""
    for pattern in ("tokenizer*", "special_tokens_map.json", "vocab.*", "merges.txt", "chat_template*"):
        for file in source.glob(pattern):
            if file.is_file():
                shutil.copy2(file, target / file.name)
