"""Which documents are held out: a pure function of their names and the seed. D completions."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


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
