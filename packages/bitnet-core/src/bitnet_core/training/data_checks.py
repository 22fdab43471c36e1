"""What there is to learn in the traces: targets, positions that KD or cross-entropy reads, documents too long for the
student. B documents, T positions.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from bitnet_core.errors import CoreError
from bitnet_core.hookspecs import LossPlugin
from bitnet_core.losses.masks_and_rows import kd_mask, response_mask, targets
from bitnet_core.traces.dataset import KDTraceDataset, common_metadata
from bitnet_core.traces.parquet import shard_files
from bitnet_core.traces.schema import MADE_BY, SHARDS
from bitnet_core.traces.target_kinds import TOPK

CHUNK = 32
"""Documents looked at together."""


@attrs.frozen
class Targets:
    """What the training documents hold within `max_seq_len`."""

    without: int
    """Documents that the cut leaves without any target."""
    has_kd: bool
    """Whether any position has a teacher distribution."""
    cut: int
    """Documents that lose their end."""
    unread: float
    """Share of all positions that the cut leaves out."""


def find_targets(traces: KDTraceDataset, data_folder: Path, max_seq_len: int) -> Targets:
    """Look at the documents that the cut shortens, and at the others until a target and a KD position are found.

    Raises CoreError where no document has a target.
    """
    is_cut = traces.full_lengths > traces.lengths
    without, has_kd, has_target = 0, False, False
    for documents in document_chunks(np.flatnonzero(is_cut), np.flatnonzero(~is_cut)):
        if has_target and has_kd and not is_cut[documents[0]]:
            break
        batch = traces.batch(documents)
        kd_BT = targets(kd_mask(batch))
        found_B = (kd_BT | targets(response_mask(batch))).any(dim=1)
        without += int((~found_B.numpy() & is_cut[documents]).sum())
        has_kd, has_target = has_kd or bool(kd_BT.any()), has_target or bool(found_B.any())
    if not has_target:
        raise nothing_to_learn(data_folder, traces, max_seq_len)
    unread = 1 - float(traces.lengths.sum()) / float(traces.full_lengths.sum())
    return Targets(without, has_kd, int(is_cut.sum()), unread)


def check_loss_fits(data_folder: Path, loss: LossPlugin, options: Any) -> None:
    """Raise CoreError where the loss can't read what the traces hold of each distribution. Reads metadata only."""
    files = shard_files(data_folder, SHARDS, MADE_BY)
    metadata = common_metadata(files)
    misfit = loss.misfit(options, metadata.target if metadata else TOPK)
    if misfit is not None:
        raise CoreError(f'{data_folder}: loss.kind = "{loss.name}" does not fit these traces: {misfit.why}', misfit.fix)


def what_is_lacking(found: Targets, max_seq_len: int) -> list[str]:
    """What the user should know of the traces; empty where nothing is wrong."""
    lacking = []
    if found.cut:
        lacking.append(
            f"{found.cut} training documents lose their end: train.max_seq_len = {max_seq_len} cuts {found.unread:.0%} "
            "of all positions off"
        )
    if found.without:
        lacking.append(
            f"{found.without} training documents teach nothing: their prompts fill train.max_seq_len = {max_seq_len}"
        )
    if not found.has_kd:
        lacking.append("no KD positions: the student learns by cross-entropy alone")
    return lacking


def beyond_context(model: PreTrainedModel, traces: KDTraceDataset) -> list[str]:
    """That documents are longer than what the student says it can read, as a line; empty: they aren't."""
    context = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    longest = int(traces.lengths.max())
    if context is None or longest <= context:
        return []
    return [
        f"training documents have up to {longest:,} tokens and the student a context of {context:,}, which is what its "
        f"exports say: set train.max_seq_len = {context}, or a longer student.max_position_embeddings from scratch"
    ]


def document_chunks(*groups: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Chunks of each group, none with documents of two."""
    for group in groups:
        for start in range(0, len(group), CHUNK):
            yield group[start : start + CHUNK]


def nothing_to_learn(data_folder: Path, traces: KDTraceDataset, max_seq_len: int) -> CoreError:
    """How long the prompts are, beside what is kept of a document."""
    whole = KDTraceDataset(data_folder, split=traces.split)
    prompts = [int(batch["is_prompt"].sum()) for batch in (whole[number] for number in range(len(whole)))]
    text = f"{data_folder}: no training document has an answer within train.max_seq_len = {max_seq_len}"
    if max_seq_len >= int(whole.full_lengths.max()):
        return CoreError(
            f"{text}: the documents are prompts alone", "collect answers: bitnet run MANIFEST --from collect"
        )
    length = f"{min(prompts)}" if min(prompts) == max(prompts) else f"{min(prompts)} to {max(prompts)}"
    return CoreError(
        f"{text}: the prompts are {length} tokens long",
        f"set train.max_seq_len to more than that (the longest document has {int(whole.full_lengths.max())})",
    )
