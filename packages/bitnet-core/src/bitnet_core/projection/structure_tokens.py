"""Which tokens are structure (JSON punctuation, code fences), decided on their bytes. V vocabulary."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

_STRUCTURE = np.zeros(256, dtype=bool)
_STRUCTURE[np.frombuffer(b'{}[]:,"', dtype=np.uint8)] = True
_SPACE = np.zeros(256, dtype=bool)
_SPACE[np.frombuffer(b" \t\r\n", dtype=np.uint8)] = True
_BACKTICK = ord("`")


def is_struct_token(vocabulary: Sequence[bytes], special_ids: Iterable[int] = ()) -> NDArray[np.bool_]:
    """bool [V]: tokens made of ``{}[]:,"`` alone (white space around and between allowed), or with a code fence.

    White space alone is no structure; neither is a special token, whatever its text.
    """
    lengths = np.fromiter((len(token) for token in vocabulary), dtype=np.int64, count=len(vocabulary))
    text = np.frombuffer(b"".join(vocabulary), dtype=np.uint8)
    owner = np.repeat(np.arange(len(vocabulary)), lengths)

    def tokens_with(which: NDArray[np.bool_], owners: NDArray[np.int64] = owner) -> NDArray[np.bool_]:
        found = np.zeros(len(vocabulary), dtype=bool)
        found[owners[which]] = True
        return found

    punctuation = tokens_with(_STRUCTURE[text]) & ~tokens_with(~(_STRUCTURE | _SPACE)[text])
    tick = text == _BACKTICK
    fence = tick[:-2] & tick[1:-1] & tick[2:] & (owner[:-2] == owner[2:])
    result = punctuation | tokens_with(fence, owner[: len(fence)])
    result[list(special_ids)] = False
    return result
