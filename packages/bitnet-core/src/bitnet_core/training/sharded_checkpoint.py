"""A checkpoint that several processes write together, each its own rows, and any number of them reads.

Beside the files of any checkpoint it has ``sharded/``: what torch.distributed.checkpoint writes as safetensors, the
weights by their names and AdamW's moments as ``NAME/exp_avg`` and ``NAME/exp_avg_sq``, and ``rest.safetensors`` with
what each process has alike (step counters, the random state). `make_plain` turns it into an ordinary one, which is what
everything but training reads.
"""

import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from bitnet_core.distributed import ProcessGroup
from bitnet_core.errors import CoreError
from bitnet_core.files import atomic_file, sha256_of, with_digest, write_json
from bitnet_core.model.read_checkpoint import LAYOUT, OPTIMIZER, RECORD, WEIGHTS, check_file, damaged, read_record

FOLDER = "sharded"
REST = f"{FOLDER}/rest.safetensors"
MOMENTS = ("/exp_avg", "/exp_avg_sq")
_AT_ONCE = 2**30
"""Bytes of tensors in memory while a plain checkpoint is made."""


def write_shards(
    checkpoint: Path, model: nn.Module, moments: Mapping[str, Tensor], rest: Mapping[str, Tensor], group: ProcessGroup
) -> None:
    """Each process writes its rows of weights and moments, one kind after the other, for it copies what it writes.

    `moments` holds the step counters too. Raises OSError, SafetensorError or CheckpointException, in all processes.
    """
    state = {name: parameter.detach() for name, parameter in model.named_parameters()}
    state |= {key: value for key, value in moments.items() if key.endswith(MOMENTS)}
    file_of = {key: 1 + next((n for n, kind in enumerate(MOMENTS, 1) if key.endswith(kind)), 0) for key in state}
    writer = HuggingFaceStorageWriter(str(checkpoint / FOLDER), file_of, save_distributed=True)
    state_dict_saver.save(state, storage_writer=writer)
    if group.is_first:
        steps = {key: value.cpu() for key, value in moments.items() if key not in state}
        save_file({**rest, **steps}, checkpoint / REST)


def shards_of(checkpoint: Path, rank: int) -> list[Path]:
    """The files that process `rank` has written."""
    return sorted((checkpoint / FOLDER).glob(f"shard-{rank + 1:05d}-*.safetensors"))


def read_shards(checkpoint: Path, model: nn.Module) -> dict[str, Tensor]:
    """Each process reads its rows of the weights into the sharded `model`; returns the moments, as `restore` wants
    them. Of a checkpoint of either kind, written by any number of processes. Raises CoreError where it can't be read.
    """
    parameters = dict(model.named_parameters())
    folder, rest = _places(checkpoint)
    state = {name: parameter.detach() for name, parameter in parameters.items()}
    for key in _shapes(folder):
        if key.endswith(MOMENTS):
            state[key] = torch.zeros_like(parameters[key.rpartition("/")[0]]).detach()
    try:
        state_dict_loader.load(state, storage_reader=HuggingFaceStorageReader(str(folder)))
    except CheckpointException as error:
        raise damaged(folder, first_failure(error)) from error
    return _rest(rest) | {key: value for key, value in state.items() if key not in parameters}


def check_shards(checkpoint: Path, files: Mapping[str, str], model: nn.Module) -> None:
    """Raises CoreError where these files (name → sha256) are not as they were written, or the tensors not the model's.

    The processes may share the files among them.
    """
    for name, digest in files.items():
        check_file(checkpoint, name, digest)
    folder, rest = _places(checkpoint)
    found = _shapes(folder)
    parameters = {name: parameter.shape for name, parameter in model.named_parameters()}
    if missing := sorted(parameters.keys() - found.keys()):
        raise damaged(folder, f"{missing[0]} is missing")
    for key, shape in found.items():
        name = key.rpartition("/")[0] if key.endswith(MOMENTS) else key
        if parameters.get(name) != shape and not _is_rest(key):
            raise damaged(folder, f"{key} belongs to no parameter of the model")
    if "rng" not in _rest(rest):
        raise damaged(rest, "the random state is missing")


def has_other_names(checkpoint: Path, model: nn.Module) -> bool:
    """Whether a plain checkpoint has its weights under other names than the model: transformers saves some
    architectures so, and an early version kept a head beside the embedding that it was tied to."""
    if read_record(checkpoint).get("layout", LAYOUT) != LAYOUT:
        return False
    try:
        with safe_open(checkpoint / WEIGHTS, framework="pt") as opened:
            return set(opened.keys()) != {name for name, _ in model.named_parameters()}
    except (OSError, SafetensorError) as error:
        raise damaged(checkpoint / WEIGHTS, error) from error


def make_plain(checkpoint: Path) -> None:
    """One plain folder of it, in place; nothing happens where it is one already. Raises CoreError.

    At any moment the folder is a whole checkpoint: its record is replaced when the plain files are there.
    """
    record = read_record(checkpoint)
    if record.get("layout", LAYOUT) == LAYOUT:
        shutil.rmtree(checkpoint / FOLDER, ignore_errors=True)  # of one that was killed while it did this
        return
    for name, digest in record["files"].items():
        check_file(checkpoint, name, digest)
    rest = _rest(checkpoint / REST)
    shapes = {key: shape for key, shape in sorted(_shapes(checkpoint / FOLDER).items()) if key not in rest}
    try:
        with atomic_file(checkpoint / WEIGHTS) as file:
            _write(file, {key: shape for key, shape in shapes.items() if "/" not in key}, {}, checkpoint)
        with atomic_file(checkpoint / OPTIMIZER) as file:
            _write(file, {key: shape for key, shape in shapes.items() if "/" in key}, rest, checkpoint)
        files = {name: digest for name, digest in record["files"].items() if not name.startswith(f"{FOLDER}/")}
        files |= {name: sha256_of(checkpoint / name) for name in (WEIGHTS, OPTIMIZER)}
        record = {name: value for name, value in record.items() if name != "sha256"}
        write_json(checkpoint / RECORD, with_digest(record | {"layout": LAYOUT, "files": dict(sorted(files.items()))}))
    except OSError as error:
        raise CoreError(
            f"{checkpoint}: no plain checkpoint can be made of it ({error})", "free some space there and run again"
        ) from error
    shutil.rmtree(checkpoint / FOLDER)


def _places(checkpoint: Path) -> tuple[Path, Path]:
    """Where the tensors lie, and the file with what is alike for all processes."""
    if (checkpoint / FOLDER).is_dir() and read_record(checkpoint)["layout"] != LAYOUT:
        return checkpoint / FOLDER, checkpoint / REST
    return checkpoint, checkpoint / OPTIMIZER


def _rest(file: Path) -> dict[str, Tensor]:
    """The random state and the step counters."""
    try:
        with safe_open(file, framework="pt") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys() if _is_rest(key)}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise damaged(file, error) from error


def _is_rest(key: str) -> bool:
    return key in ("rng", "rng_cuda") or key.endswith("/step")


def _shapes(folder: Path) -> dict[str, torch.Size]:
    """Of the tensors in the folder's safetensors, put together from their parts."""
    try:
        found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise damaged(folder, error) from error
    return {key: each.size for key, each in found.items() if isinstance(each, TensorStorageMetadata)}


def _write(file: Path, shapes: Mapping[str, torch.Size], rest: Mapping[str, Tensor], checkpoint: Path) -> None:
    """A safetensors file of these float32 tensors of the checkpoint, some at a time, and `rest`.

    The library's own writer wants all of them in memory.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    places = [(name, "F32", shape, 4 * shape.numel()) for name, shape in shapes.items()]
    places += [(name, _DTYPES[each.dtype], each.shape, each.nbytes) for name, each in rest.items()]
    for name, dtype, shape, size in places:
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        for tensors in chain(_in_parts(shapes, checkpoint), [rest]):
            for tensor in tensors.values():
                opened.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


_DTYPES = {torch.float32: "F32", torch.uint8: "U8"}


def _in_parts(shapes: Mapping[str, torch.Size], checkpoint: Path) -> Iterator[dict[str, Tensor]]:
    """The checkpoint's tensors, whole, in the order of `shapes`; at most so many bytes at a time, but one at least."""
    names = list(shapes)
    while names:
        part: dict[str, Tensor] = {}
        while names and (not part or sum(tensor.nbytes for tensor in part.values()) < _AT_ONCE):
            name = names.pop(0)
            part[name] = torch.empty(shapes[name])
        with warnings.catch_warnings(action="ignore"):  # that there is one process, as is meant
            reader = HuggingFaceStorageReader(str(checkpoint / FOLDER))
            state_dict_loader.load(part, storage_reader=reader, no_dist=True)
        yield part


def first_failure(error: CheckpointException) -> BaseException:
    """What the first process raised that failed."""
    return next(iter(error.failures.values()))[0]
