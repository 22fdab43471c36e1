"""From the teacher's candidates to the student's tokens. T teacher tokens, C candidates over all of them."""

from collections.abc import Sequence

import attrs
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bitnet_core.traces.first_subtoken import NONE, FirstSubtoken
from bitnet_core.traces.raw import RawAnswers
from bitnet_core.traces.student_text import UNKNOWN, Student, StudentText
from bitnet_core.traces.teacher_text import END_NAMES, TeacherText


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

    def __init__(self, student: Student, teacher: TeacherTokens | None) -> None:
        """`teacher`: None where the raw shards hold bytes."""
        self._teacher = teacher
        self.first_subtoken = FirstSubtoken(student)

    def of_answers(
        self,
        answers: RawAnswers,
        teacher_D: Sequence[TeacherText],
        student_D: Sequence[StudentText],
        used_C: NDArray[np.bool_],
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """For the candidates in use: the student's token by the first-subtoken rule, and which are the sampled ones."""
        counts_T = answers.candidate_counts
        token_of_C = np.repeat(np.arange(len(counts_T)), counts_T)[used_C]
        if self._teacher is None:
            both = pa.chunked_array([_coded(answers.candidates), _coded(answers.tokens)]).unify_dictionaries()
            strings = both.chunk(0).dictionary
            codes, codes_T = (pc.fill_null(chunk.indices, -1).to_numpy(zero_copy_only=False) for chunk in both.chunks)
            codes_C = codes[used_C]
            # Only strings that are candidates in use; the entry behind the last stands for null.
            wanted = np.zeros(len(strings) + 1, dtype=bool)
            wanted[codes_C] = True
            of_code = np.full(len(strings) + 1, NONE, dtype=np.int32)
            used = np.flatnonzero(wanted[:-1])
            of_code[used] = self.first_subtoken.ids(strings.take(pa.array(used)).to_pylist())
        else:
            codes_C, codes_T = answers.candidates.to_numpy()[used_C], answers.tokens.to_numpy()
            strings, of_code = self._teacher.bytes, self._teacher.student_id
            fresh = np.unique(codes_C[of_code[codes_C] == UNKNOWN])
            if len(fresh):
                of_code[fresh] = self.first_subtoken.ids(strings.take(pa.array(fresh)).to_pylist())
        mapped_C = of_code[codes_C].astype(np.int32)
        is_sampled_C = (codes_C == codes_T[token_of_C]) & (codes_C >= 0)
        self._map_beginnings(mapped_C, codes_C, token_of_C, strings, teacher_D, student_D, answers.response_lengths)
        return mapped_C, is_sampled_C

    def _map_beginnings(
        self,
        mapped_C: NDArray[np.int32],
        codes_C: NDArray[np.int32],
        token_of_C: NDArray[np.int64],
        strings: pa.Array,
        teacher_D: Sequence[TeacherText],
        student_D: Sequence[StudentText],
        lengths_D: NDArray[np.int64],
    ) -> None:
        """Where only one side has a prefix space, the first candidates lose theirs or get one. In place."""
        first_D = np.cumsum(lengths_D) - lengths_D
        for completion, (teacher, student) in enumerate(zip(teacher_D, student_D, strict=True)):
            prepend = student.has_prefix
            if prepend == teacher.prefix_space:
                continue
            start = np.searchsorted(token_of_C, first_D[completion], "left")
            stop = np.searchsorted(token_of_C, first_D[completion], "right")
            codes = codes_C[start:stop]
            named = np.flatnonzero(codes >= 0)
            own = strings.take(pa.array(codes[named])).to_pylist()
            turned = [
                each if each in END_NAMES else b" " + each if prepend else each.removeprefix(b" ") for each in own
            ]
            special = (
                np.zeros(len(named), dtype=bool) if self._teacher is None else self._teacher.is_special[codes[named]]
            )
            ids = self.first_subtoken.ids(turned)
            mapped_C[start:stop][named[~special]] = ids[~special]


def _coded(strings: pa.Array) -> pa.DictionaryArray:
    """Byte strings as a dictionary with int32 codes."""
    if not pa.types.is_dictionary(strings.type):
        strings = strings.cast(pa.binary()).dictionary_encode()
    return strings.cast(pa.dictionary(pa.int32(), pa.binary()))
