"""The first-subtoken rule: which student token would come first if the text went on with a candidate's bytes.

The bytes are read as a continuation: no prefix space is added, and special tokens' names are plain text. A word's
leading space is among the bytes, so " sea" and "sea" go to different tokens wherever the student has them.
T teacher tokens, C candidates over all of them.
"""

from collections.abc import Collection, Iterator, Sequence

import attrs
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bitnet_core.projection.read_raw_shards import RawAnswers
from bitnet_core.projection.student_text import Student, StudentText
from bitnet_core.projection.teacher_text import END_NAMES, UNKNOWN, TeacherText

NONE = -1
"""The student has no token that these bytes begin with: the mass goes to other."""


_CHUNK = 16_384


class FirstSubtoken:
    """A dictionary of byte strings, filled as they come: each distinct one is tokenised once, in batches."""

    def __init__(self, student: Student, end_names: Collection[bytes] = END_NAMES) -> None:
        self._student = student
        end = student.end_of_turn
        known = {b"": NONE} | dict.fromkeys(sorted(end_names), NONE if end is None else end)
        self._strings = pa.array(list(known), pa.binary())
        self._ids = np.array(list(known.values()), dtype=np.int32)

    def __len__(self) -> int:
        return len(self._ids)

    def ids(self, strings: Sequence[bytes | None]) -> NDArray[np.int32]:
        """int32 [N]: the student's token, or `NONE`."""
        return self.of_array(pa.array(strings, pa.binary()))

    def of_array(self, strings: pa.Array) -> NDArray[np.int32]:
        """The same for a binary array."""
        places = pc.index_in(strings, value_set=self._strings)
        fresh = strings.filter(pc.and_(pc.is_null(places), pc.is_valid(strings))).unique()
        if len(fresh):
            self._strings = pa.concat_arrays([self._strings, fresh])
            self._ids = np.concatenate([self._ids, self._of_fresh(fresh.to_pylist())])
            places = pc.index_in(strings, value_set=self._strings)
        found = self._ids[pc.fill_null(places, 0).to_numpy()]
        return found if strings.null_count == 0 else np.where(strings.is_valid().to_numpy(False), found, NONE)

    def _of_fresh(self, fresh: Sequence[bytes]) -> NDArray[np.int32]:
        return np.array(
            [id_ for start in range(0, len(fresh), _CHUNK) for id_ in self._learn(fresh[start : start + _CHUNK])],
            dtype=np.int32,
        )

    def _learn(self, fresh: Sequence[bytes]) -> Iterator[int]:
        texts = [_valid_start(each) for each in fresh]
        encoded = self._student.continuation.encode_batch_fast(texts, add_special_tokens=False)
        for each, text, encoding in zip(fresh, texts, encoded, strict=True):
            ids = encoding.ids
            by_text = ids[0] if ids and ids[0] != self._student.unknown_id else NONE
            # A piece of a character behind the text may be part of the student's token (" " + half a dash).
            by_bytes = self._by_bytes(each) if len(text.encode()) < len(each) else NONE
            reaches_further = by_bytes != NONE and len(self._student.bytes_by_id[by_bytes]) > len(text.encode())
            yield by_bytes if by_text == NONE or reaches_further else by_text

    def _by_bytes(self, string: bytes) -> int:
        """The student's longest token that these bytes begin with: for pieces of characters."""
        for size in range(min(len(string), self._student.longest_token), 0, -1):
            if (id_ := self._student.id_of_bytes.get(string[:size])) is not None:
                return id_
        return NONE


def _valid_start(string: bytes) -> str:
    """The longest beginning that is UTF-8."""
    try:
        return string.decode()
    except UnicodeDecodeError as error:
        return string[: error.start].decode()


@attrs.frozen(eq=False)
class TeacherTokens:
    """The teacher's tokenizer, where it gave ids instead of bytes."""

    bytes: pa.Array
    """binary [teacher's vocabulary]"""
    is_special: NDArray[np.bool_]
    student_id: NDArray[np.int32]
    """The student's token for each id: same special token, end of turn, itself (same tokenizer); `UNKNOWN`: by bytes.
    Filled as ids are met."""
    is_end: NDArray[np.bool_]


class CandidateMap:
    """Remembers the candidates that it has met."""

    def __init__(
        self, student: Student, teacher: TeacherTokens | None, end_names: Collection[bytes] = END_NAMES
    ) -> None:
        """`teacher`: None where the raw shards hold bytes. `end_names`: tokens that end its turns."""
        self._teacher, self._end_names = teacher, end_names
        self.first_subtoken = FirstSubtoken(student, end_names)

    def of_answers(
        self,
        answers: RawAnswers,
        teacher_D: Sequence[TeacherText],
        student_D: Sequence[StudentText],
        tokens_N: NDArray[np.int64],
        cells: NDArray[np.int64] | slice,
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """The student's token by the first-subtoken rule for the candidates of these teacher tokens; the sampled ones.

        cells: `candidates_of` them.
        """
        if self._teacher is None:
            both = pa.chunked_array([_coded(answers.candidates), _coded(answers.tokens)]).unify_dictionaries()
            strings = both.chunk(0).dictionary
            codes, codes_T = (_codes(chunk.indices) for chunk in both.chunks)
            codes_C = codes[cells]
            # Only strings that are candidates in use; the entry behind the last stands for null.
            wanted = np.zeros(len(strings) + 1, dtype=bool)
            wanted[codes_C] = True
            of_code = np.full(len(strings) + 1, NONE, dtype=np.int32)
            used = np.flatnonzero(wanted[:-1])
            of_code[used] = self.first_subtoken.of_array(strings.take(pa.array(used)))
        else:
            codes_C, codes_T = answers.candidates.to_numpy()[cells], answers.tokens.to_numpy()
            strings, of_code = self._teacher.bytes, self._teacher.student_id
            fresh = np.unique(codes_C[of_code[codes_C] == UNKNOWN])
            if len(fresh):
                of_code[fresh] = self.first_subtoken.of_array(strings.take(pa.array(fresh)))
        counts_N = answers.candidate_counts[tokens_N]
        mapped_C = of_code[codes_C].astype(np.int32, copy=False)
        is_sampled_C = codes_C == np.repeat(codes_T[tokens_N], counts_N)
        is_sampled_C &= codes_C >= 0
        bounds_N = np.concatenate([[0], np.cumsum(counts_N)])
        for start, stop, prepend in self._first_candidates(answers, teacher_D, student_D, tokens_N, bounds_N):
            self._map_beginning(mapped_C[start:stop], codes_C[start:stop], strings, prepend)
        return mapped_C, is_sampled_C

    def _first_candidates(
        self,
        answers: RawAnswers,
        teacher_D: Sequence[TeacherText],
        student_D: Sequence[StudentText],
        tokens_N: NDArray[np.int64],
        bounds_N: NDArray[np.int64],
    ) -> Iterator[tuple[int, int, bool]]:
        """From where to where the candidates of a text's first token go, where only one side has a prefix space.

        And whether it is the student's.
        """
        first_D = np.cumsum(answers.response_lengths) - answers.response_lengths
        for completion, (teacher, student) in enumerate(zip(teacher_D, student_D, strict=True)):
            if student.has_prefix != teacher.prefix_space:
                n = int(np.searchsorted(tokens_N, first_D[completion]))
                if n < len(tokens_N) and tokens_N[n] == first_D[completion]:
                    yield int(bounds_N[n]), int(bounds_N[n + 1]), student.has_prefix

    def _map_beginning(
        self, mapped_C: NDArray[np.int32], codes_C: NDArray[np.int32], strings: pa.Array, prepend: bool
    ) -> None:
        """The first candidates of a text lose their prefix space or get one. In place."""
        named = np.flatnonzero(codes_C >= 0)
        codes = codes_C[named]
        own = strings.take(pa.array(codes)).to_pylist()
        turned = [
            each if each in self._end_names else b" " + each if prepend else each.removeprefix(b" ") for each in own
        ]
        special = (
            np.zeros(len(named), dtype=bool) if self._teacher is None else self._teacher.is_special[codes_C[named]]
        )
        mapped_C[named[~special]] = self.first_subtoken.ids(turned)[~special]


def candidates_of(tokens_N: NDArray[np.int64], counts_T: NDArray[np.int64]) -> NDArray[np.int64] | slice:
    """Where the candidates of these teacher tokens stand, in order. tokens_N: rising."""
    if len(tokens_N) == len(counts_T):
        return slice(None)
    counts_N = counts_T[tokens_N]
    starts_N = (np.cumsum(counts_T) - counts_T)[tokens_N]
    return np.arange(int(counts_N.sum())) + np.repeat(starts_N - (np.cumsum(counts_N) - counts_N), counts_N)


def _codes(indices: pa.Array) -> NDArray[np.int32]:
    """-1 for null."""
    filled = pc.fill_null(indices, -1) if indices.null_count else indices
    codes: NDArray[np.int32] = filled.to_numpy()
    return codes


def _coded(strings: pa.Array) -> pa.DictionaryArray:
    """Byte strings as a dictionary with int32 codes."""
    if not pa.types.is_dictionary(strings.type):
        strings = strings.cast(pa.binary()).dictionary_encode()
    return strings.cast(pa.dictionary(pa.int32(), pa.binary()))
