"""Checkpoints written, restored and gone on from: a folder ``step_N`` that transformers opens, plus training's state.

``model.safetensors``, ``config.json`` and the tokenizer make it loadable; ``training.safetensors`` holds the
optimizer's moments and the random state, ``training.json`` the counters and the sha256 of every other file. Nothing in
it is unpickled. The folder is written under another name and renamed, so a half-written one is never seen.
`bitnet_core.model.read_checkpoint` reads it, and checks the digests of what it loads.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from transformers import PreTrainedModel

from bitnet_core.distributed import ALONE, ProcessGroup, like_parameter
from bitnet_core.errors import CoreError
from bitnet_core.files import sha256_of, with_digest
from bitnet_core.model.choose_checkpoint import best_checkpoint, checkpoints
from bitnet_core.model.progress_bars import no_progress_bars
from bitnet_core.model.read_checkpoint import (
    FORMAT_VERSION,
    LAYOUT,
    OPTIMIZER,
    RECORD,
    SHARDED,
    WEIGHTS,
    TrainingState,
    check_file,
    damaged,
    file_digests,
    load_model,
    read_state,
)
from bitnet_core.model.start_sharded import skeleton
from bitnet_core.traces.tokenizer_files import copy_tokenizer, put_template
from bitnet_core.training.sharded_checkpoint import (
    check_shards,
    first_failure,
    has_other_names,
    make_plain,
    shards_of,
    write_shards,
)

_LIKE_THE_WEIGHT = ("exp_avg", "exp_avg_sq", "state1", "state2")
"""Moments of AdamW and of its 8-bit form that have their parameter's shape."""


@attrs.frozen
class TokenizerSource:
    """What a checkpoint's tokenizer is made of."""

    folder: Path
    template: str | None = None
    """The chat template instead of the folder's own."""


def save_checkpoint(
    folder: Path,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    state: TrainingState,
    tokenizer: TokenizerSource,
    group: ProcessGroup,
) -> Path:
    """Write ``folder/step_N`` atomically and return it; CoreError, and nothing left behind, where the disk is full.

    All processes call it: one writes a plain folder, several write its parts. Any number of them reads either.
    """
    target = folder / f"step_{state.step}"
    partial = folder / f".step_{state.step}.partial"
    try:
        with group.failing_together(), _told(target):
            if group.is_first:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
                write_companions(partial, model, tokenizer)
        with group.failing_together(), _told(target):
            write_tensors(partial, model, optimizer, group)
            digests = _digests(partial, shards_of(partial, group.rank) if group.size > 1 else [])
        for others in group.everyones(digests):
            digests |= others
        with group.failing_together(), _told(target):
            if group.is_first:
                own = [file for file in _files(partial) if file.relative_to(partial).as_posix() not in digests]
                files = dict(sorted((digests | _digests(partial, own)).items()))
                layout = LAYOUT if group.size == 1 else SHARDED
                record = {"version": FORMAT_VERSION, "layout": layout, "files": files} | attrs.asdict(state)
                (partial / RECORD).write_text(json.dumps(with_digest(record), indent=1))
                _sync([*own, partial / RECORD])
                shutil.rmtree(target, ignore_errors=True)
                partial.rename(target)
    finally:
        if group.is_first:
            shutil.rmtree(partial, ignore_errors=True)
    return target


@contextlib.contextmanager
def _told(target: Path) -> Iterator[None]:
    """Errors of the disk become a CoreError."""
    try:
        yield
    except (OSError, SafetensorError, CheckpointException) as error:
        why = first_failure(error) if isinstance(error, CheckpointException) else error
        raise CoreError(
            f"{target}: the checkpoint can't be written ({why})",
            "free some space there and run again: the training goes on from the checkpoint before",
        ) from error


def write_companions(folder: Path, model: PreTrainedModel, tokenizer: TokenizerSource) -> None:
    """What a checkpoint has beside its tensors."""
    with no_progress_bars():
        model.save_pretrained(folder, state_dict={"none": torch.zeros(())})
    (folder / WEIGHTS).unlink()
    copy_tokenizer(tokenizer.folder, folder)
    if tokenizer.template is not None:
        put_template(folder, tokenizer.template)


def write_tensors(folder: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer, group: ProcessGroup) -> None:
    """The model's state, the optimizer's (``NAME/MOMENT``), and the random state of the first process."""
    names: dict[Tensor, str] = {each: name for name, each in model.named_parameters()}  # a tied one once
    moments = {
        # 8-bit moments share their table of values (qmap), which safetensors doesn't take.
        f"{names[parameter]}/{key}": value.clone() if key.startswith("qmap") else torch.as_tensor(value)
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
    }
    rest = {"rng": torch.get_rng_state()}
    if torch.cuda.is_available():
        rest["rng_cuda"] = torch.cuda.get_rng_state()
    if group.size > 1:
        write_shards(folder, model, moments, rest, group)
        return
    weights = {name: parameter.detach().cpu().contiguous() for parameter, name in names.items()}
    with no_progress_bars():
        model.save_pretrained(folder, state_dict=weights)
    save_file(rest | {key: value.cpu().contiguous() for key, value in moments.items()}, folder / OPTIMIZER)


def _digests(folder: Path, files: Sequence[Path]) -> dict[str, str]:
    """File within the folder → sha256, of files that are synced to disk or will be."""
    return {file.relative_to(folder).as_posix(): sha256_of(file) for file in files}


def _sync(files: Sequence[Path]) -> None:
    for file in files:
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def remove_partials(folder: Path) -> None:
    """Remove what a killed run left half-written."""
    for partial in folder.glob(".step_*.partial"):
        shutil.rmtree(partial, ignore_errors=True)


def load_moments(checkpoint: Path, model: nn.Module) -> dict[str, Tensor]:
    """The optimizer's moments and the random state, as `restore` wants them; CoreError where they are damaged."""
    file = checkpoint / OPTIMIZER
    if digest := file_digests(checkpoint).get(OPTIMIZER):
        check_file(checkpoint, OPTIMIZER, digest)
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


def prune(folder: Path, keep: int, fingerprint: str) -> None:
    """Remove checkpoints but the newest `keep` and the best, and those of the training that was gone on from."""
    best = best_checkpoint(folder)
    for old in checkpoints(folder)[:-keep]:
        with contextlib.suppress(CoreError):  # whose a damaged one is nobody knows
            if old != best and read_state(old).fingerprint == fingerprint:
                shutil.rmtree(old)


@attrs.frozen(eq=False)
class Resumed:
    """A checkpoint in memory; for several processes only what it is, to be read by each into its part."""

    folder: Path
    model: PreTrainedModel
    """On the meta device where each process is to read its own rows (`read_shards`)."""
    state: TrainingState
    moments: dict[str, Tensor]
    """Empty where each process is to read its own."""
    damaged: list[str]
    """What was wrong with newer checkpoints; they are kept beside it as ``step_N.damaged``."""
    grown_from: int | None
    """The steps that its training was to have, where this one is to have more."""


def resume(
    folder: Path,
    fingerprint: str,
    plan: Mapping[str, Any] | None = None,
    on_aside: Callable[[str], None] = lambda told: None,
    group: ProcessGroup = ALONE,
) -> Resumed | None:
    """The newest whole checkpoint of this very training, or of one like it that was to be shorter; None without any.

    `plan`: as `TrainingState.plan`. Checkpoints of other trainings are set aside (see `set_aside`), `on_aside` hears of
    each; those of the training that is gone on from stay. Raises CoreError where there are some and all are damaged.
    All processes of `group` call it.
    """
    faults: dict[Path, CoreError] = {}
    with group.first_goes_ahead():
        if group.is_first:
            remove_partials(folder)
        newest_first = checkpoints(folder)[::-1]
    for checkpoint in newest_first:
        try:
            with group.failing_together():  # and after it all have read what the first one may move
                state = read_state(checkpoint)
                fits = state.fingerprint == fingerprint or goes_further(plan, state)
                if fits:
                    model, moments = load_for(checkpoint, group)
        except CoreError as error:
            faults[checkpoint] = error
            continue
        if not fits:
            if group.is_first:
                place = set_aside(checkpoint, state.fingerprint)
                on_aside(f"{checkpoint.name} is of a training with other settings: it is set aside in {place}")
            continue
        for bad in faults if group.is_first else ():
            aside = bad.with_name(f"{bad.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            bad.rename(aside)
        grown_from = int(state.plan["steps"]) if state.plan and state.fingerprint != fingerprint else None
        return Resumed(checkpoint, model, state, moments, [error.why for error in faults.values()], grown_from)
    if faults:
        raise next(iter(faults.values()))
    return None


def load_for(checkpoint: Path, group: ProcessGroup) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """Model and moments of a checkpoint; for several processes a model without values, and no moments.

    Raises CoreError where files are not as they were written.
    """
    if group.size == 1:
        make_plain(checkpoint)
        return _whole(checkpoint)
    try:
        model = skeleton(checkpoint)
    except Exception as error:  # transformers checks a config with a library whose errors are plain Exceptions
        raise damaged(checkpoint / "config.json", error) from error
    if has_other_names(checkpoint, model):
        return _whole(checkpoint)
    digests = sorted(file_digests(checkpoint).items())
    check_shards(checkpoint, dict(group.mine(digests)), model)
    return model, {}


def _whole(checkpoint: Path) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    model = load_model(checkpoint)
    return model, load_moments(checkpoint, model)


def goes_further(plan: Mapping[str, Any] | None, state: TrainingState) -> bool:
    """Whether `plan` is that of the checkpoint's training, but with more steps or a bigger budget."""
    before = state.plan
    return (
        plan is not None
        and before is not None
        and plan["lineage"] is not None
        and plan["lineage"] == before.get("lineage")
        and plan["steps"] >= before["steps"]
        and plan["budget_tokens"] >= before["budget_tokens"]
    )


def set_aside(checkpoint: Path, fingerprint: str) -> Path:
    """Move a checkpoint of another training, with its health, to ``set_aside/FINGERPRINT`` beside its folder."""
    folder = checkpoint.parent
    place = folder.parent / SET_ASIDE / (fingerprint[:8] or "unnamed") / folder.name
    place.mkdir(parents=True, exist_ok=True)
    for source in (folder / f"{checkpoint.name}_health.json", checkpoint):
        if source.exists():
            target = place / source.name
            while target.exists():  # an earlier one's
                target = target.with_name(f"{target.name}_")
            source.rename(target)
    return place


SET_ASIDE = "set_aside"
"""The folder beside the checkpoints' for those of trainings with other settings. Nothing deletes them."""
