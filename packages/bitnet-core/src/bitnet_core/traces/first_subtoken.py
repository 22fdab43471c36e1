"""The first-subtoken rule: which student token would come first if the text went on with these bytes.

The bytes are read as a continuation: no prefix space is added, and special tokens' names are plain text. A word's
leading space is among the bytes, so " sea" and "sea" go to different tokens wherever the student has them.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
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
        self._known: dict[bytes, int] = {b"": NONE}
        end = student.end_of_turn
        self._known |= dict.fromkeys(END_NAMES, NONE if end is None else end)

    def __len__(self) -> int:
        return len(self._known)

    def ids(self, strings: Sequence[bytes | None]) -> NDArray[np.int32]:
        """int32 [N]: the student's token, or `NONE`."""
        known = self._known
        fresh = list(dict.fromkeys(each for each in strings if each is not None and each not in known))
        for start in range(0, len(fresh), _CHUNK):
            self._learn(fresh[start : start + _CHUNK])
        return np.array([NONE if each is None else known[each] for each in strings], dtype=np.int32)

    def of_array(self, strings: pa.DictionaryArray) -> NDArray[np.int32]:
        """The same for each entry of the dictionary of an Arrow array."""
        return self.ids(strings.dictionary.to_pylist())

    def _learn(self, fresh: Sequence[bytes]) -> None:
        texts = [_valid_start(each) for each in fresh]
        encoded = self._student.continuation.encode_batch_fast(texts, add_special_tokens=False)
        for each, text, encoding in zip(fresh, texts, encoded, strict=True):
            ids = encoding.ids
            by_text = ids[0] if ids and ids[0] != self._student.unknown_id else NONE
            # A piece of a character behind the text may be part of the student's token (" " + half a dash).
            by_bytes = self._by_bytes(each) if len(text.encode()) < len(each) else NONE
            reaches_further = by_bytes != NONE and len(self._student.bytes_by_id[by_bytes]) > len(text.encode())
            self._known[each] = by_bytes if by_text == NONE or reaches_further else by_text

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
