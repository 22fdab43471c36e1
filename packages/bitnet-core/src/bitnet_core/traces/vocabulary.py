"""What the projection needs to know of each id of the student's tokenizer. V vocabulary."""

from typing import Any

import attrs
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bitnet_core.traces.structure import is_struct_token
from bitnet_core.traces.tokenizer import id_to_bytes, special_ids


@attrs.frozen(eq=False)
class Vocabulary:
    """What the projection needs to know of each id of the student's tokenizer."""

    sha256: str
    size: int
    """V: ids that the traces may hold (the teacher's output width where it is larger than the tokenizer)."""
    bytes: pa.Array
    """binary [V]"""
    is_struct: NDArray[np.bool_]
    """[V]"""
    is_special: NDArray[np.bool_]
    """[V]"""


def load_vocabulary(tokenizer: Any, sha256: str, width: int) -> Vocabulary:
    """The student's tokenizer as arrays over V = `width`. Raises CoreError where its tokens' bytes can't be told."""
    table = id_to_bytes(tokenizer, width)
    special = special_ids(tokenizer)
    is_special = np.zeros(width, dtype=bool)
    is_special[special] = True
    return Vocabulary(sha256, width, pa.array(table, pa.binary()), is_struct_token(table, special), is_special)
