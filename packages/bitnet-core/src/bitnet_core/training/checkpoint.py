"""Checkpoints: a folder ``step_N`` that transformers opens, plus what training needs to go on.

``model.safetensors``, ``config.json`` and the tokenizer make it loadable; ``training.safetensors`` holds the
optimizer's moments and the random state, ``training.json`` the counters. Nothing in it is unpickled. The folder is
written under another name and renamed, so a half-written one is never seen.
"""

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bitnet_core.errors import CoreError
from bitnet_core.model.modeling import BitNetKDEForCausalLM
from bitnet_core.world import ProcessGroup, like_parameter, whole

FORMAT_VERSION = 1
_LIKE_THE_WEIGHT = ("exp_avg", "exp_avg_sq", "state1", "state2")
"""Moments of AdamW and of its 8-bit form that have their parameter's shape."""


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


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: TrainingState,
    tokenizer_folder: Path,
    group: ProcessGroup,
) -> Path:
    """Write ``folder/step_N`` atomically and return it; CoreError, and nothing left behind, where the disk is full.

    All processes call it, the first one writes. What many wrote, one can load, and the other way round.
    """
    target = folder / f"step_{state.step}"
    partial = folder / f".step_{state.step}.partial"
    weights, moments = gathered(model, optimizer, keep=group.is_first)
    if not group.is_first:
        return target
    shutil.rmtree(partial, ignore_errors=True)
    try:
        write_checkpoint(partial, model, weights, moments, state, tokenizer_folder)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    except (OSError, SafetensorError) as error:
        raise CoreError(
            f"{target}: the checkpoint can't be written ({error}); free some space there and run again: "
            "the training goes on from the checkpoint before"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def gathered(
    model: nn.Module, optimizer: torch.optim.Optimizer, keep: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The model's state and the optimizer's (``name/moment``), whole and on the CPU; empty where not to `keep`."""

    def take(tensor: Tensor) -> Tensor | None:
        entire = whole(tensor.detach())  # every process takes part in this
        return entire.cpu().contiguous() if keep else None

    parameters = dict(model.named_parameters())  # a tied one once
    names = {id(parameter): name for name, parameter in parameters.items()}
    weights = {name: take(parameter) for name, parameter in parameters.items()}
    moments = {
        # 8-bit moments share their table of values (qmap), which safetensors doesn't take.
        f"{names[id(parameter)]}/{key}": take(value.clone() if key.startswith("qmap") else torch.as_tensor(value))
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
    }
    return _present(weights), _present(moments)


def _present(tensors: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def write_checkpoint(
    folder: Path,
    model: nn.Module,
    weights: dict[str, Tensor],
    moments: Mapping[str, Tensor],
    state: TrainingState,
    tokenizer_folder: Path,
) -> None:
    folder.mkdir(parents=True)
    model.save_pretrained(folder, state_dict=weights)  # type: ignore[operator]
    copy_tokenizer(tokenizer_folder, folder)
    tensors = {"rng": torch.get_rng_state(), **moments}
    if torch.cuda.is_available():
        tensors["rng_cuda"] = torch.cuda.get_rng_state()
    save_file(tensors, folder / "training.safetensors")
    (folder / "training.json").write_text(json.dumps({"version": FORMAT_VERSION} | attrs.asdict(state), indent=1))
    for file in folder.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


def remove_partials(folder: Path) -> None:
    """Remove what a killed run left half-written."""
    for partial in folder.glob(".step_*.partial"):
        shutil.rmtree(partial, ignore_errors=True)


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


def load_moments(checkpoint: Path, model: nn.Module) -> dict[str, Tensor]:
    """The optimizer's moments and the random state, as `restore` wants them; CoreError where they are damaged."""
    file = checkpoint / "training.safetensors"
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise damaged(file, error) from error
    parameters = dict(model.named_parameters())
    if "rng" not in tensors or tensors["rng"].shape != torch.get_rng_state().shape:
        raise damaged(file, "the random state is missing")
    for key, value in tensors.items():
        name, _, moment = key.rpartition("/")
        if moment not in ("rng", "rng_cuda") and (
            name not in parameters or (moment in _LIKE_THE_WEIGHT and value.shape != parameters[name].shape)
        ):
            raise damaged(file, f"{key} belongs to no parameter of the model")
    return tensors


def restore(tensors: Mapping[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put the moments and the random state back."""
    torch.set_rng_state(tensors["rng"])
    if "rng_cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng_cuda"])
    parameters = dict(model.named_parameters())
    counts_in_python = not isinstance(optimizer, torch.optim.AdamW)
    for key, value in tensors.items():
        if key in ("rng", "rng_cuda"):
            continue
        name, moment = key.rsplit("/", 1)
        parameter = parameters[name]
        # AdamW keeps its step counter on the CPU unless it is fused on an accelerator.
        optimizer.state[parameter][moment] = (
            int(value) if moment == "step" and counts_in_python else like_parameter(value, parameter)
        )


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


def prune(folder: Path, keep: int) -> None:
    """Remove checkpoints but the newest `keep` and the best."""
    best = best_checkpoint(folder)
    for old in checkpoints(folder)[:-keep]:
        if old != best:
            shutil.rmtree(old)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer's files of one model folder into another, so that the checkpoint stands alone."""
    for pattern in ("tokenizer*", "special_tokens_map.json", "vocab.*", "merges.txt", "chat_template*"):
        for file in source.glob(pattern):
            if file.is_file():
                shutil.copy2(file, target / file.name)
