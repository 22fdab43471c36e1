"""Which documents are for training, which held out, and which for the figures that are published. D completions.

Who is held out is a pure function of the documents' names and the seed.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bitnet_core.errors import CoreError
from bitnet_core.traces import schema
from bitnet_core.traces.parquet import open_parquet, whole

FALLBACK_HOLDOUT = 0.1
"""Share of the documents held out of traces without a split column (by the hash of prompt_idx, seed 0)."""


def held_out(document_names: Sequence[str], fraction: float, seed: int) -> NDArray[np.bool_]:
    """bool [D]: whether each completion belongs to a held-out document; completions of one name stay together.

    A document is held out where the hash of (seed, name), spread over [0, 1), lies under `fraction`, so it stays where
    it is when others come or go. With two or more documents each side has at least one (the nearest to the border);
    a single one is for training.
    """
    places = {name: _place(name, seed) for name in set(document_names)}
    chosen = {name for name, place in places.items() if place < fraction}
    by_place = sorted(places, key=lambda name: (places[name], name))
    if len(chosen) == len(places):
        chosen -= set(by_place[-1:])
    elif not chosen and len(places) >= 2:
        chosen = {by_place[0]}
    return np.fromiter((name in chosen for name in document_names), dtype=bool, count=len(document_names))


def _place(name: str, seed: int) -> float:
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def splits_of(table: pa.Table, path: Path, group: int) -> NDArray[np.int8] | None:
    """[R] places in `schema.SPLITS`; None where the file has no split column."""
    if "split" not in table.column_names:
        return None
    split = table["split"]
    is_dictionary = pa.types.is_dictionary(split.type)  # as the project stage writes it
    names = whole(split.unify_dictionaries() if is_dictionary else split.cast(pa.string()).dictionary_encode())
    dictionary = names.dictionary.to_pylist()
    unknown = sorted(set(dictionary) - set(schema.SPLITS))
    if unknown:
        raise CoreError(
            f'{path}: row group {group}: split "{unknown[0]}" is not one of: {", ".join(schema.SPLITS)}',
            f"run {schema.MADE_BY} again",
        )
    place = np.array([schema.SPLITS.index(name) for name in dictionary], dtype=np.int8)
    result: NDArray[np.int8] = place[names.indices.to_numpy()]
    return result


def splits_by_hash(prompt_idx_D: NDArray[np.int64]) -> NDArray[np.int8]:
    prompts, document = np.unique(prompt_idx_D, return_inverse=True)
    chosen = held_out([f"prompt_idx {prompt}" for prompt in prompts.tolist()], FALLBACK_HOLDOUT, seed=0)
    return chosen[document].astype(np.int8)


def measured_split(run_or_folder: Path) -> str:
    """What published figures are measured on: "test" where there are test documents, else "heldout".

    Raises CoreError.
    """
    file = schema.trace_files(run_or_folder)[0]
    metadata = schema.read_metadata(open_parquet(file, schema.MADE_BY).schema_arrow, file)
    return "test" if metadata is not None and metadata.projection.get("test_documents") else "heldout"
