"""The first-subtoken rule: which student token would come first if the text went on with these bytes.

The bytes are read as a continuation: no prefix space is added, and special tokens' names are plain text. A word's
leading space is among the bytes, so " sea" and "sea" go to different tokens wherever the student has them.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bitnet_core.traces.student_text import Student
from bitnet_core.traces.teacher_text import END_NAMES

NONE = -1
"""The student has no token that these bytes begin with: the mass goes to other."""
_CHUNK = 16_384


class FirstSubtoken:
    """A dictionary of byte strings, filled as they come: each distinct one is tokenised once, in batches."""

    def __init__(self, student: Student) -> None:
        self._student = student
        end = student.end_of_turn
        known = {b"": NONE} | dict.fromkeys(sorted(END_NAMES), NONE if end is None else end)
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
