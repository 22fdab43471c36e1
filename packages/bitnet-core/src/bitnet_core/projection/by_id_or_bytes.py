"""Which way a raw folder goes to a student: by id, or by bytes (the teacher's own, or those of its ids: `by_bytes`).

By id is for the teacher's own tokenizer: ids are taken as they are. D completions, T tokens.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bitnet_core.config.project import ProjectConfig
from bitnet_core.errors import CoreError
from bitnet_core.projection.by_bytes import Aligner
from bitnet_core.projection.chat_template import ChatTemplate
from bitnet_core.projection.first_subtoken import NONE, TeacherTokens
from bitnet_core.projection.kd_rows import Targets
from bitnet_core.projection.raw_folder import CROSS_TOKENIZER, RawFolder
from bitnet_core.projection.read_raw_shards import RawAnswers, RawBatch
from bitnet_core.projection.student_text import Student, Vocabulary, load_vocabulary
from bitnet_core.projection.teacher_text import UNKNOWN
from bitnet_core.projection.top_k_other import known_logprobs
from bitnet_core.traces.tokenizer import (
    cuts_otherwise,
    end_ids,
    id_to_bytes,
    identity_of,
    load_tokenizer,
    special_ids,
    tokenizer_digests,
    vocabulary_size,
)
from bitnet_core.traces.tokenizer_files import read_template

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


@attrs.frozen(eq=False)
class Way:
    """How this raw folder is projected for this student."""

    name: str
    """"identity" or "bytes"."""
    vocabulary: Vocabulary
    aligner: Aligner | None
    teacher: TeacherTokens | None
    assumed: bool
    """Nothing but the texts says that the teacher's ids are of the student's tokenizer."""
    template: Mapping[str, str | None]
    """Of the prompts; see `bitnet_core.traces.schema.KDMetadata`."""
    notes: tuple[str, ...]
    """What the user should know of tokenizer and template."""


def choose_way(raw: RawFolder, raw_folder: Path, tokenizer_folder: Path, config: ProjectConfig) -> Way:
    """Identity where ids are there and the tokenizer is the teacher's; else by bytes: the teacher's own, or its ids'.

    Raises CoreError where the teacher gave ids of another tokenizer whose folder is gone.
    """
    tokenizer = load_tokenizer(tokenizer_folder)
    identity = identity_of(tokenizer)
    sha256, size = identity.ids, identity.size
    notes = [each for each in (cuts_otherwise(tokenizer_folder, tokenizer),) if each is not None]
    teacher = raw.metadata.get("teacher") or {}
    teacher_folder = Path(teacher["model_folder"]) if teacher.get("model_folder") else None
    teacher_sha256 = teacher.get("tokenizer_sha256")
    if teacher_sha256 is None and teacher_folder is not None and teacher_folder.is_dir():
        same_folder = teacher_folder.resolve() == Path(tokenizer_folder).resolve()
        their_identity = identity if same_folder else tokenizer_digests(teacher_folder)
        teacher_sha256 = their_identity.ids
        if their_identity.ids == sha256 and their_identity.cutting != identity.cutting:
            notes.append(
                f"the tokenizer in {tokenizer_folder} has the teacher's ids, but cuts text otherwise (normaliser, "
                "pre-tokenizer, post-processor, decoder or added tokens' flags): the student would read another cut "
                "than the teacher's answers have; set project.tokenizer to the teacher's, or project.alignment to bytes"
            )
    same = teacher_sha256 == sha256
    # A model's output may be wider than its tokenizer (padded to a round number): its candidates can be any of these.
    width = max(size, (teacher.get("vocab_size") or 0)) if same or teacher_sha256 is None else size
    by_id = raw.without_ids is None and (same or (teacher_sha256 is None and not raw.has_bytes))
    chat_template = read_template(Path(config.chat_template)) if config.chat_template else None
    if by_id := by_id and config.alignment == "auto":
        _check_size(tokenizer_folder, size, teacher, teacher_sha256)
        anew = list(_other_template(raw, ChatTemplate(tokenizer, tokenizer_folder, chat_template), config))
        by_id, notes = not anew, notes + anew
    if by_id:
        vocabulary = load_vocabulary(tokenizer, identity, width, end_ids(Path(tokenizer_folder), tokenizer))
        template = {"sha256": teacher.get("template_sha256"), "clock": None}
        return Way("identity", vocabulary, None, None, teacher_sha256 is None, template, tuple(notes))

    tokens, assumed = None, False
    student = Student(Path(tokenizer_folder), chat_template)
    if not raw.has_bytes:
        assumed = teacher_sha256 is None
        if same or assumed:
            _check_size(tokenizer_folder, size, teacher, teacher_sha256)
            tokens = teacher_tokens(tokenizer, Path(tokenizer_folder), width, student, same_tokenizer=True)
        elif teacher_folder is not None and teacher_folder.is_dir():
            theirs = load_tokenizer(teacher_folder)
            their_width = max(vocabulary_size(theirs), teacher.get("vocab_size") or 0)
            tokens = teacher_tokens(theirs, teacher_folder, their_width, student, same_tokenizer=False)
        else:
            raise CoreError(
                f"{raw_folder}: the teacher gave token ids but no bytes, its tokenizer (sha256 "
                f"{teacher_sha256}) is not the one in {tokenizer_folder} (sha256 {sha256}), and its folder "
                f"{teacher_folder or '(teacher.model_folder: not named)'} is not there",
                CROSS_TOKENIZER,
            )
    vocabulary = load_vocabulary(tokenizer, identity, width, student.end_ids)
    template = student.template.record
    notes += _clock_note(template["clock"])
    aligner = Aligner(student, tokens, config.sampled_span, raw.end_names)
    return Way("bytes", vocabulary, aligner, tokens, assumed, template, tuple(notes))


def _clock_note(clock: str | None) -> Iterator[str]:
    if clock is not None:
        yield (
            f"the chat template asks for the time (strftime_now): all prompts say {clock}, so that the "
            "projection repeats; a student that is asked later reads another date. For prompts without one set "
            "project.chat_template to a template that doesn't ask"
        )


def _check_size(folder: Path, size: int, teacher: Mapping[str, Any], teacher_sha256: str | None) -> None:
    teacher_size = teacher.get("vocab_size")
    if teacher_sha256 is None and teacher_size is not None and teacher_size < size:
        raise CoreError(
            f"the tokenizer in {folder} has {size} ids, the teacher only {teacher_size}: it is not the teacher's",
            CROSS_TOKENIZER,
        )


def _other_template(raw: RawFolder, template: ChatTemplate, config: ProjectConfig) -> Iterator[str]:
    """By id prompts would be as the teacher read them: a note where the student is asked through another template."""
    theirs, ours = (raw.metadata.get("teacher") or {}).get("template_sha256"), template.record["sha256"]
    conversations = (raw.prompt_lengths > 1).any()  # 1: a text's begin token
    if theirs is not None and ours not in (None, theirs) and conversations:
        yield (
            "the teacher's prompts went through another chat template than the student's ("
            f"{config.chat_template or 'its tokenizer has it'}): they are written through the student's, and answers "
            "are aligned by their bytes"
        )


def teacher_tokens(
    tokenizer: Any, folder: Path, width: int, student: Student, *, same_tokenizer: bool
) -> TeacherTokens:
    """The teacher's ids as bytes, and what its special tokens are to the student.

    A token that ends a generation is the student's own of that name where it ends one too, else the student's end of
    turn; another special token is the student's of that name, or nothing. Raises CoreError.
    """
    table = id_to_bytes(tokenizer, width)
    special, ends = special_ids(tokenizer), end_ids(folder, tokenizer)
    is_special, is_end = np.zeros(width, dtype=bool), np.zeros(width, dtype=bool)
    is_special[special] = True
    is_end[[id_ for id_ in ends if id_ < width]] = True
    if same_tokenizer:
        student_id = np.arange(width, dtype=np.int32)
    else:
        student_id = np.full(width, UNKNOWN, dtype=np.int32)
        for id_ in {*special, *ends}:
            twin = student.special_id(table[id_].decode("utf-8", "replace"))
            if id_ in ends and twin not in student.end_ids:
                twin = student.end_of_turn
            student_id[id_] = NONE if twin is None else twin
    return TeacherTokens(pa.array(table, pa.binary()), is_special, student_id, is_end)


def check_answer_ids(answers: RawAnswers, way: Way, raw_folder: Path) -> None:
    if way.teacher is not None:
        for name, ids in (("token_ids", answers.tokens), ("candidate_ids", answers.candidates)):
            check_id_range(ids.to_numpy(), len(way.teacher.bytes), name, raw_folder)


def check_assumed_tokenizer(way: Way, counted: Counter[str], raw_folder: Path) -> None:
    if way.assumed and counted["texts_differing"] > counted["texts_checked"] / 2:
        raise not_the_teachers(raw_folder, counted["texts_differing"], counted["texts_checked"])
