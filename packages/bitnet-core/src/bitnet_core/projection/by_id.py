"""From the teacher's tokens to the same tokenizer's: ids are taken as they are. D completions, T tokens."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bitnet_core.errors import CoreError
from bitnet_core.projection.kd_rows import Targets
from bitnet_core.projection.raw_schema import CROSS_TOKENIZER
from bitnet_core.projection.read_raw_shards import RawBatch
from bitnet_core.projection.student_vocabulary import Vocabulary
from bitnet_core.projection.top_k_other import known_logprobs

_CHECKED_TEXTS = 64
"""Completions of each batch whose text is compared with the bytes of their tokens."""


def identity_targets(batch: RawBatch, vocabulary: Vocabulary) -> Targets:
    """The teacher's tokens are the student's. Raises CoreError for ids outside the vocabulary."""
    place = Path("prompt_ids and candidate_ids of a batch")
    check_id_range(batch.prompt_ids, vocabulary.size, "prompt_ids", place)
    check_id_range(
        batch.candidate_ids[known_logprobs(batch.candidate_logprobs)], vocabulary.size, "candidate_ids", place
    )
    return Targets(
        prompt_lengths=batch.prompt_lengths,
        response_lengths=batch.response_lengths,
        prompt_ids=batch.prompt_ids,
        response_ids=batch.token_ids,
        is_unknown=batch.token_ids == (-1 if vocabulary.unknown_id is None else vocabulary.unknown_id),
        sample_logprob=np.where(
            known_logprobs(batch.token_logprobs), np.minimum(batch.token_logprobs, 0.0), np.nan
        ).astype(np.float32),
        kd_rows=np.arange(len(batch.token_ids)),
        candidate_counts=batch.candidate_counts,
        candidate_ids=batch.candidate_ids,
        candidate_logprobs=batch.candidate_logprobs,
        extra=batch.extra,
    )


def check_texts(batch: RawBatch, vocabulary: Vocabulary, raw_folder: Path, counted: Counter[str]) -> None:
    """Compare the text of some completions with the bytes of their tokens: another tokenizer would give other bytes.

    Special tokens may be absent from the text, and a leading space (SentencePiece) too. Raises CoreError where more
    than half of the texts differ.
    """
    offsets = np.concatenate([[0], np.cumsum(batch.response_lengths)])
    checked = min(_CHECKED_TEXTS, len(batch.text))
    check_id_range(batch.token_ids, vocabulary.size, "token_ids", raw_folder)
    differing = 0
    for completion in range(checked):
        ids = batch.token_ids[offsets[completion] : offsets[completion + 1]]
        spoken = {
            b"".join(vocabulary.bytes.take(pa.array(some)).to_pylist()).lstrip(b" ")
            for some in (ids, ids[~vocabulary.is_special[ids]])
        }
        differing += batch.text[completion].lstrip(b" ") not in spoken
    unknown = vocabulary.unknown_id
    counted["unknown_tokens"] += 0 if unknown is None else int((batch.token_ids == unknown).sum())
    counted["texts_checked"] += checked
    counted["texts_differing"] += differing
    if differing > checked / 2:
        raise not_the_teachers(raw_folder, differing, checked)


def check_id_range(ids: NDArray[np.int32], size: int, column: str, raw_folder: Path) -> None:
    if len(ids) and (ids.min() < 0 or ids.max() >= size):
        raise CoreError(
            f"{raw_folder}: {column} holds ids from {ids.min()} to {ids.max()}, but the tokenizer has {size}: "
            "it is not the teacher's",
            CROSS_TOKENIZER,
        )


def not_the_teachers(raw_folder: Path, differing: int, checked: int) -> CoreError:
    return CoreError(
        f"{raw_folder}: in {differing} of {checked} completions the tokenizer's bytes for the teacher's ids are "
        "not the teacher's text: it is not the teacher's tokenizer",
        CROSS_TOKENIZER,
    )
