"""The residual stream of a model over the calibration documents, on the disk, moved on a group of linears at a time.

Memory holds one batch of documents, whatever their number; the operating system keeps as much of the files in its cache
as it likes. Shapes: N tokens of all documents, D residual width, I width of a group's input.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from bitnet_core.calibration.documents import Batch
from bitnet_core.calibration.found_groups import FoundStream
from bitnet_core.calibration.llama_groups import LlamaGroup
from bitnet_core.calibration.work import MODELS, Work
from bitnet_core.model.start_whole_model import WholeStart


@attrs.define(eq=False)
class Stream:
    """One model's hidden states within a `BitNetKDEDecoderLayer`."""

    layer: nn.Module
    hidden_ND: Tensor
    """float32"""
    rooms: tuple[Tensor, Tensor]
    """Two flat tensors, each large enough for the widest input of a group: the present one's and the next one's."""
    input_NI: Tensor = attrs.Factory(lambda: torch.empty(0))
    """That of the group which the stream has come to."""

    def come_to(self, group: LlamaGroup, batches: Sequence[Batch], device: torch.device) -> None:
        """Compute the group's input. What the groups before put out has been added by `leave`."""
        count, width = len(self.hidden_ND), group.modules(self.layer)[0].in_features
        before_NI, free = self.input_NI, self.rooms[1]
        input_NI = free[: count * width].view(count, width)
        for batch in batches:
            before = before_NI[batch.rows].to(device)
            input_NI[batch.rows] = group.input_of(self.layer, self.hidden_ND[batch.rows].to(device), before, batch)
        self.input_NI, self.rooms = input_NI, self.rooms[::-1]

    def leave(self, group: LlamaGroup, batches: Sequence[Batch], device: torch.device) -> None:
        """Add what the group makes of the present input to the stream, where that is its place."""
        if not group.residual:
            return
        linear = group.modules(self.layer)[0]
        for batch in batches:
            self.hidden_ND[batch.rows] += linear(self.input_NI[batch.rows].to(device)).to(self.hidden_ND)

    def finish(self, batches: Sequence[Batch], device: torch.device) -> None:
        """Nothing: the last group's output was the layer's."""


def write_first_streams(work: Work, outside: Mapping[str, Tensor]) -> None:
    """Both streams as the embedding makes them. outside: the tensors of no layer."""
    for model in MODELS:
        file = work.before(0) / model
        hidden_ND = in_file(file, (work.tokens, work.start.hidden_size), torch.float32)
        for batch in work.batches:
            hidden_ND[batch.rows] = embedded(work, outside, batch)
        sync(file)


def embedded(work: Work, outside: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """The stream before the first layer [N, D]. outside: the tensors of no layer."""
    if isinstance(work.start, WholeStart):
        first = work.start.calls(batch.padded_ids(work.device), batch.is_token(work.device))[0]
        return batch.unpadded(first.hidden_BTD)
    return outside["model.embed_tokens.weight"][torch.cat(batch.ids)]


def open_stream(work: Work, index: int, name: str) -> Any:
    """The stream of one of `MODELS` before layer `index`, in the files of what is after it."""
    start, entry = work.start, work.before(index) / name
    shape = work.tokens, start.hidden_size
    size = (work.tokens * start.widest,)
    rooms = tuple(in_file(work.folder / f"{name}.{i}.input", size, work.dtype) for i in (0, 1))
    hidden_ND = in_file(work.before(index + 1) / name, shape, torch.float32)
    layer = start.layer(index, work.device, ternary=name == "student")
    if isinstance(start, WholeStart):
        return FoundStream(layer, start, index, in_file(entry, shape, torch.float32), hidden_ND, (rooms[0], rooms[1]))
    return Stream(layer, hidden_ND, (rooms[0], rooms[1]))


def in_file(file: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor whose memory is the file's, which is made where it isn't there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    size = torch.Size(shape)
    return torch.from_file(str(file), shared=True, size=size.numel(), dtype=dtype).view(size)


def sync(file: Path) -> None:
    """Returns once what was written to the file outlives a power cut."""
    with file.open("r+b") as handle:
        os.fsync(handle.fileno())


def relative_error(student_ND: Tensor, teacher_ND: Tensor) -> float:
    """‖student − teacher‖² / ‖teacher‖² over all tokens but attention sinks (20 times the median squared norm)."""
    norm_N = torch.linalg.vecdot(teacher_ND, teacher_ND)
    usual_N = norm_N <= 20 * norm_N.median()
    gaps = [
        (ours - theirs).square().sum(-1)
        for ours, theirs in zip(student_ND.split(4096), teacher_ND.split(4096), strict=True)
    ]
    total = float(norm_N[usual_N].double().sum())
    return float(torch.cat(gaps)[usual_N].double().sum()) / total if total else 0.0
