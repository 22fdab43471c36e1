"""What the projection needs to know of each id of the student's tokenizer. V vocabulary."""

from collections.abc import Collection
from typing import Any

import attrs
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bitnet_core.projection.structure_tokens import is_struct_token
from bitnet_core.traces.tokenizer import Identity, id_to_bytes, special_ids, unknown_id


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
    cutting_sha256: str | None = None
    """How the tokenizer cuts text; see `bitnet_core.traces.tokenizer.cutting_sha256`."""
    unknown_id: int | None = None
    """What stands for a character that the tokenizer has no token for, where it is nothing else."""


def load_vocabulary(tokenizer: Any, identity: Identity, width: int, ends: Collection[int] = ()) -> Vocabulary:
    """The student's tokenizer as arrays over V = `width`; `ends`: its ids that end a turn.

    Raises CoreError where its tokens' bytes can't be told.
    """
    table = id_to_bytes(tokenizer, width)
    special = special_ids(tokenizer)
    is_special = np.zeros(width, dtype=bool)
    is_special[special] = True
    unknown = unknown_id(tokenizer)
    return Vocabulary(
        sha256=identity.ids,
        size=width,
        bytes=pa.array(table, pa.binary()),
        is_struct=is_struct_token(table, special),
        is_special=is_special,
        cutting_sha256=identity.cutting,
        unknown_id=None if unknown in ends else unknown,
    )
