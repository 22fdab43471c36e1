"""From the teacher's tokens to another tokenizer's, by byte offsets (docs/projection.md).

D completions, T teacher tokens and S student tokens of all responses, C candidates, R rows, V student vocabulary.
Where a student token starts at a teacher token's start stands a KD position; elsewhere the row trains by CE alone.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import attrs
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bitnet_core.projection.first_subtoken import NONE, CandidateMap, TeacherTokens, candidates_of
from bitnet_core.projection.kd_rows import Targets
from bitnet_core.projection.read_raw_shards import RawAnswers
from bitnet_core.projection.student_text import Student, StudentText
from bitnet_core.projection.teacher_text import END_NAMES, UNKNOWN, TeacherText, ends_by_content, locate
from bitnet_core.projection.top_k_other import known_logprobs


@attrs.frozen(eq=False)
class Match:
    """Student tokens against the teacher's. [S] each."""

    aligned: NDArray[np.bool_]
    """It starts where a teacher token starts."""
    inside: NDArray[np.bool_]
    """It starts within a teacher token."""
    token: NDArray[np.int64]
    """Where aligned: that teacher token."""
    span: NDArray[np.int64]
    """Where aligned: how many teacher tokens start in it."""
    rest_logprob: NDArray[np.float64]
    """Log-probability of the teacher tokens that start in it after the first; NaN: unknown; 0 where there is none."""
    sample_logprob: NDArray[np.float32]
    """Of all that start in it; NaN: unknown."""


def match_tokens(
    placed: NDArray[np.int64],
    starts_P: NDArray[np.int64],
    ends_P: NDArray[np.int64],
    starts_S: NDArray[np.int64],
    ends_S: NDArray[np.int64],
    token_logprobs_T: NDArray[np.float32],
) -> Match:
    """placed: the P teacher tokens that have a place, in rising order of their starts."""
    if not len(placed):  # one that no byte meets
        placed, starts_P, ends_P = np.zeros(1, dtype=np.int64), np.full(1, -9), np.full(1, -9)
    last = len(placed) - 1
    known_S = starts_S != UNKNOWN
    found, stop = np.searchsorted(starts_P, starts_S), np.searchsorted(starts_P, ends_S)
    stop = np.maximum(stop, found)
    first, final = np.minimum(found, last), np.clip(stop - 1, 0, last)
    aligned = known_S & (starts_P[first] == starts_S) & (stop > found)
    before = np.maximum(found - 1, 0)
    inside = known_S & ~aligned & (found > 0) & (ends_P[before] > starts_S)
    span = np.where(aligned, stop - found, 0)
    # Sums over tokens as differences of running sums; what is unknown is counted, not summed.
    logprobs_P = token_logprobs_T[placed].astype(np.float64)
    known_P = known_logprobs(logprobs_P)
    logprobs_P = np.where(known_P, np.minimum(logprobs_P, 0.0), 0.0)
    sums, unknown, bytes_before = _running(logprobs_P), _running(~known_P), _running(ends_P - starts_P)
    # Teacher tokens without a place may lie between two that have one.
    has_gap = (ends_P[final] - starts_P[first]) != (bytes_before[final + 1] - bytes_before[first])
    several = stop - found > 1
    second = np.minimum(found + 1, last + 1)
    rest_known = (unknown[stop] == unknown[second]) & ~has_gap
    rest = np.where(span > 1, np.where(rest_known, sums[stop] - sums[second], np.nan), 0.0)
    total = np.where(several, sums[stop] - sums[found], np.where(stop > found, logprobs_P[first], 0.0))
    # A token's log-probability stands at the first student token in it; the rest of it adds nothing, if it is known.
    readable = (aligned | inside & known_P[before]) & (unknown[stop] == unknown[found]) & ~(several & has_gap)
    return Match(
        aligned=aligned,
        inside=inside,
        token=np.where(aligned, placed[first], 0),
        span=span,
        rest_logprob=rest,
        sample_logprob=np.where(readable, total, np.nan).astype(np.float32),
    )


def _running(values: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([[0], np.cumsum(values)])


def count_reasons(
    match: Match,
    offered_S: NDArray[np.bool_],
    hidden_S: NDArray[np.bool_],
    ends: NDArray[np.int64],
    counted: Counter[str],
) -> None:
    """Why rows have no KD. ends: the rows of ends of turn."""
    is_end_S = np.zeros(len(offered_S), dtype=bool)
    is_end_S[ends] = True
    loose_S = ~match.aligned & ~hidden_S & ~is_end_S
    counted["ce_only_normalised"] += int(hidden_S.sum())
    counted["ce_only_end_not_offered"] += int((is_end_S & ~offered_S).sum())
    counted["ce_only_no_candidates"] += int((match.aligned & ~offered_S & ~is_end_S).sum())
    counted["ce_only_inside_a_teacher_token"] += int((loose_S & match.inside).sum())
    counted["ce_only_text_differs"] += int((loose_S & ~match.inside).sum())


class Aligner:
    """Aligns batches of completions; remembers the candidates that it has met."""

    def __init__(
        self,
        student: Student,
        teacher: TeacherTokens | None,
        sampled_span: str,
        end_names: Collection[bytes] = END_NAMES,
    ) -> None:
        """`teacher`: None where the raw shards hold bytes. `sampled_span`: see ``ProjectConfig``.

        `end_names`: bytes of tokens that end the teacher's turns.
        """
        self._student = student
        self._teacher = teacher
        self._joint = sampled_span == "product"
        self._end_names = pa.array(sorted(end_names), pa.binary())
        self.candidates = CandidateMap(student, teacher, end_names)

    def align(self, answers: RawAnswers, counted: Counter[str], mass: dict[str, float]) -> Targets:
        """Counts go to `counted`, probabilities that went to other to `mass`."""
        teacher_D = self._teacher_texts(answers, counted)
        student_D, ended_D = self._student_texts(answers, teacher_D, counted)
        sizes_D = np.array([len(each.text) + 3 for each in teacher_D], dtype=np.int64)
        base_D = np.cumsum(sizes_D) - sizes_D + 1
        ids_S = np.concatenate([each.ids for each in student_D])
        is_unknown_S = np.concatenate([each.is_unknown for each in student_D])
        counted["unknown_tokens"] += int(is_unknown_S.sum())
        lengths_D = np.array([len(each.ids) for each in student_D], dtype=np.int64)
        starts_S = _globally([each.starts for each in student_D], base_D)
        ends_S = _globally([each.ends for each in student_D], base_D)
        starts_T = _globally([each.starts for each in teacher_D], base_D)
        ends_T = _globally([each.ends for each in teacher_D], base_D)
        placed = np.flatnonzero(starts_T != UNKNOWN)
        _meet_at_the_beginning(starts_T, ends_T, placed, base_D, [each.has_prefix for each in student_D])
        match = match_tokens(placed, starts_T[placed], ends_T[placed], starts_S, ends_S, answers.token_logprobs)

        counts_T = answers.candidate_counts
        offered_S = match.aligned & (counts_T[match.token] > 0)
        count_reasons(match, offered_S, starts_S == UNKNOWN, np.cumsum(lengths_D)[ended_D] - 1, counted)
        rows = np.flatnonzero(offered_S)
        tokens_N = match.token[rows]
        counts_N = counts_T[tokens_N]
        cells = candidates_of(tokens_N, counts_T)
        mapped_C, is_sampled_C = self.candidates.of_answers(answers, teacher_D, student_D, tokens_N, cells)
        logprobs_C = answers.candidate_logprobs[cells].astype(np.float64)
        known_C = known_logprobs(logprobs_C)
        if self._joint:
            # The sampled candidate stands for the student's token in the text, not for what its own bytes begin with.
            sampled = np.flatnonzero(is_sampled_C)
            of_sampled = rows[np.searchsorted(np.cumsum(counts_N), sampled, side="right")]
            rest = match.rest_logprob[of_sampled]
            unknown = np.isnan(rest)
            mapped_C[sampled] = np.where(unknown | is_unknown_S[of_sampled], NONE, ids_S[of_sampled])
            before = logprobs_C[sampled]
            logprobs_C[sampled] += np.where(unknown, 0.0, rest)
            lost = (rest < 0.0) & known_C[sampled]
            mass["span"] += float((np.exp(before[lost]) - np.exp(logprobs_C[sampled[lost]])).sum())
            counted["spans_with_unknown_logprobs"] += int(unknown.sum())
        counted["spans_of_several_tokens"] += int((match.span[rows] > 1).sum())
        homeless_C = (mapped_C == NONE) & known_C
        counted["unmapped_candidates"] += int(homeless_C.sum())
        mass["unmapped"] += float(np.exp(np.minimum(logprobs_C[homeless_C], 0.0)).sum())
        usable_C = known_C & ~homeless_C
        if not usable_C.all():
            found_N = np.add.reduceat(usable_C, np.cumsum(counts_N) - counts_N, dtype=np.int64)
            counted["ce_only_no_candidate_maps"] += int((found_N == 0).sum())
        return Targets(
            prompt_lengths=np.array([len(each.prompt_ids) for each in student_D], dtype=np.int64),
            response_lengths=lengths_D,
            prompt_ids=np.concatenate([each.prompt_ids for each in student_D]),
            response_ids=ids_S,
            is_unknown=is_unknown_S,
            sample_logprob=match.sample_logprob,
            kd_rows=rows,
            candidate_counts=counts_N,
            candidate_ids=mapped_C,
            candidate_logprobs=logprobs_C,
        )

    # --- the two texts

    def _teacher_texts(self, answers: RawAnswers, counted: Counter[str]) -> list[TeacherText]:
        lengths_T, spelt, special_T, end_T = self._spelt(answers.tokens)
        bounds_D = np.concatenate([[0], np.cumsum(answers.response_lengths)])
        byte_of_T = np.concatenate([[0], np.cumsum(lengths_T)])
        teacher_D = []
        for completion, text in enumerate(answers.text):
            start, stop = int(bounds_D[completion]), int(bounds_D[completion + 1])
            own, last = spelt[byte_of_T[start] : byte_of_T[stop]], spelt[byte_of_T[stop - 1] : byte_of_T[stop]]
            reason = answers.finish_reason[completion]
            # Some providers show the end of the turn as an empty token.
            is_end = bool(end_T[stop - 1]) or (reason == "stop" and not last)
            if not is_end and ends_by_content(own, last, text, reason):
                is_end = True
                counted["ends_by_content"] += 1
            found = locate(lengths_T[start:stop], own, special_T[start:stop], is_end, text)
            counted["texts_differing"] += found.differs
            teacher_D.append(found)
        counted["texts_checked"] += len(teacher_D)
        return teacher_D

    def _student_texts(
        self, answers: RawAnswers, teacher_D: Sequence[TeacherText], counted: Counter[str]
    ) -> tuple[list[StudentText], NDArray[np.bool_]]:
        """Each text in the student's tokens, its end of turn included; bool [D] where there is one.

        A teacher of which only bytes are known need not show its last token: there "stop" says that the turn ended.
        """
        texts = []
        for teacher in teacher_D:
            cut = cut_character(teacher.text)
            counted["cut_characters"] += cut > 0
            texts.append(teacher.text[: len(teacher.text) - cut].decode("utf-8", "replace"))
        student_D = self._student.tokenise(self._student.prompts(answers.messages), texts)
        counted["prompt_boundaries_forced"] += sum(each.boundary_forced for each in student_D)
        end = self._student.end_of_turn
        reasons = zip(teacher_D, answers.finish_reason, strict=True)
        hidden = self._teacher is None
        ended_D = np.array(
            [end is not None and (each.ended or (hidden and reason == "stop")) for each, reason in reasons], dtype=bool
        )
        for completion in np.flatnonzero(ended_D).tolist():
            student_D[completion] = _with_end(student_D[completion], int(end or 0), len(teacher_D[completion].text))
        return student_D, ended_D

    def _spelt(self, tokens: pa.Array) -> tuple[NDArray[np.int64], bytes, NDArray[np.bool_], NDArray[np.bool_]]:
        """Lengths in bytes, all bytes, which tokens are special, which end a turn."""
        if self._teacher is None:
            strings = pc.fill_null(tokens.cast(pa.binary()), b"")
            special = np.zeros(len(strings), dtype=bool)
            end = pc.is_in(strings, self._end_names).to_numpy(zero_copy_only=False)
        else:
            ids = tokens.to_numpy()
            strings, special, end = (
                self._teacher.bytes.take(tokens),
                self._teacher.is_special[ids],
                self._teacher.is_end[ids],
            )
        lengths = np.asarray(pc.binary_length(strings), dtype=np.int64)
        return lengths, b"".join(strings.to_pylist()), special, end


def _with_end(text: StudentText, end_id: int, size: int) -> StudentText:
    return attrs.evolve(
        text,
        ids=np.append(text.ids, np.int32(end_id)),
        starts=np.append(text.starts, size),
        ends=np.append(text.ends, size + 1),
        is_unknown=np.append(text.is_unknown, False),
    )


def _meet_at_the_beginning(
    starts_T: NDArray[np.int64],
    ends_T: NDArray[np.int64],
    placed: NDArray[np.int64],
    base_D: NDArray[np.int64],
    has_prefix_D: Sequence[bool],
) -> None:
    """A prefix space that one side has belongs to the other's first token too: both begin together. In place."""
    if not len(placed):
        return
    first_D = np.minimum(np.searchsorted(starts_T[placed], base_D - 1), len(placed) - 1)
    for base, first, has_prefix in zip(base_D.tolist(), placed[first_D].tolist(), has_prefix_D, strict=True):
        if has_prefix and starts_T[first] == base:
            starts_T[first] = base - 1
        elif not has_prefix and starts_T[first] == base - 1 and ends_T[first] > base:
            starts_T[first] = base


def _globally(places_D: Sequence[NDArray[np.int64]], base_D: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places within the batch: each completion has bytes of its own, one before its text and one behind it."""
    moved = [
        np.where(each == UNKNOWN, UNKNOWN, each + base) for each, base in zip(places_D, base_D.tolist(), strict=True)
    ]
    return np.concatenate(moved) if moved else np.zeros(0, dtype=np.int64)


def cut_character(text: bytes) -> int:
    """Bytes of an unfinished character at the end (the length limit fell into it)."""
    for size in range(1, min(4, len(text) + 1)):
        lead = text[-size]
        if lead & 0xC0 != 0x80:
            needed = 4 if lead >= 0xF0 else 3 if lead >= 0xE0 else 2 if lead >= 0xC0 else 1
            return size if needed > size else 0
    return 0
