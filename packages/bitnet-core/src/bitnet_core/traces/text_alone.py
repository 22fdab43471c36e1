"""Completions of which only the text is known (no log-probabilities were given): read as one token over all of it.

So they go the way of every other completion, and each of the student's tokens trains by cross-entropy alone.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bitnet_core.traces.parquet import list_lengths, whole


def is_text_alone(table: pa.Table, token_counts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """bool [completions]: a text and no tokens."""
    sizes: NDArray[Any] = pc.fill_null(pc.binary_length(table["text"]), 0).to_numpy()
    return (token_counts == 0) & (sizes > 0)


def texts_as_tokens(table: pa.Table) -> pa.Table:
    """The same completions; those without tokens have one: the text, of unknown log-probability, no candidates."""
    tokens = whole(table["token_bytes"])
    counts = list_lengths(tokens)
    which = is_text_alone(table, counts)
    if not which.any():
        return table
    values = tokens.flatten().cast(pa.binary())
    texts = whole(table["text"]).cast(pa.binary()).filter(pa.array(which))
    place = (np.cumsum(counts) - counts)[which]
    order = np.insert(np.arange(len(values)), place, len(values) + np.arange(len(texts)))
    added = {
        "token_bytes": pa.concat_arrays([values, texts]).take(pa.array(order)),
        "token_logprobs": _inserted(table["token_logprobs"], place, np.nan),
        "candidate_counts": _inserted(table["candidate_counts"], place, 0),
    }
    offsets = pa.array(np.concatenate([[0], np.cumsum(np.where(which, 1, counts))]), pa.int32())
    for name, flat in added.items():
        table = table.set_column(table.schema.get_field_index(name), name, pa.ListArray.from_arrays(offsets, flat))
    return table


def _inserted(column: pa.ChunkedArray, place: NDArray[np.int64], value: float) -> pa.Array:
    flat = whole(column).flatten()
    return pa.array(np.insert(flat.to_numpy(zero_copy_only=False), place, value), flat.type)
