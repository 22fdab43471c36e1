"""Which documents repeat one another, so that they stay in one split. D completions, S shingles of a text, B bands.

Two completions belong together where their conversations are the same, or where their answers nearly are: by MinHash
with banding (Broder 1997; Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4). It is linear in the
text, keeps 136 bytes a completion, and neither the order of the documents nor that of the shards plays a part.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

SHINGLE_BYTES = 24
"""About five words of English, eight characters of Chinese."""
BANDS, BAND_HASHES = 16, 4
"""Answers that share half of their shingles meet in a band 64 times in 100, those that share 0.7 99 times, 0.2 2.5."""
SHORTEST = 64
"""Bytes. A shorter answer ("Yes.") is no sign that two documents are one."""
RULE = {"kind": "minhash", "shingle_bytes": SHINGLE_BYTES, "bands": BANDS, "band_hashes": BAND_HASHES}
"""Recorded beside the split; what is said of it here is pinned by its tests."""
_WORD = re.compile(r"\w+")


def _odd_numbers(count: int, name: str) -> NDArray[np.uint64]:
    digests = (hashlib.blake2b(f"{name} {i}".encode(), digest_size=8).digest() for i in range(count))
    return np.array([int.from_bytes(digest, "big") | 1 for digest in digests], dtype=np.uint64)


_POWERS = _odd_numbers(SHINGLE_BYTES, "shingle")
_FACTORS = _odd_numbers(BANDS * BAND_HASHES, "hash")
_SHIFT = np.uint64(32)


def keys_of(messages: str, text: bytes) -> NDArray[np.uint64]:
    """uint64 [1 + B]: what two completions of near-duplicate documents have in common, with one key in the same place.

    messages: JSON, as the raw shard has it; "[]" for a plain text, which then stands for itself. 0: no key.
    """
    words = _normalised(text.decode("utf-8", "replace"))
    conversation = " ".join(_normalised(str(each.get("content", ""))) for each in json.loads(messages))
    keys = np.zeros(1 + BANDS, dtype=np.uint64)
    whole = f"prompt {conversation}" if conversation else f"text {words}"
    keys[0] = int.from_bytes(hashlib.blake2b(whole.encode(), digest_size=8).digest(), "big") | 1
    letters_S = np.frombuffer(words.encode(), dtype=np.uint8).astype(np.uint64)
    if len(letters_S) >= SHORTEST:
        shingles = np.unique(_mixed(np.lib.stride_tricks.sliding_window_view(letters_S, SHINGLE_BYTES) @ _POWERS))
        least = np.array([_mixed(shingles * factor).min() for factor in _FACTORS])
        keys[1:] = _mixed((least.reshape(BANDS, BAND_HASHES) * _FACTORS[:BAND_HASHES]).sum(axis=1)) | np.uint64(1)
    return keys


def _normalised(text: str) -> str:
    """Words alone, so that neither spacing, nor punctuation, nor case makes a copy a new text."""
    return " ".join(_WORD.findall(text.casefold()))


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijection that spreads each bit over all 64 (one round of Murmur's finaliser)."""
    values = (values ^ (values >> _SHIFT)) * np.uint64(0xFF51AFD7ED558CCD)
    return values ^ (values >> _SHIFT)


def shared_names(names: Sequence[str], keys_DB: NDArray[np.uint64]) -> list[str]:
    """Each completion's name, the same for all that belong together: the first by the alphabet.

    A document that repeats no other keeps its own, and completions of one name belong together in any case.
    """
    group = list(range(len(names)))

    def root(i: int) -> int:
        while group[i] != i:
            group[i] = group[group[i]]
            i = group[i]
        return i

    for a, b in _pairs(names, keys_DB):
        first, second = sorted((root(a), root(b)), key=lambda i: (names[i], i))
        group[second] = first
    return [names[root(i)] for i in range(len(names))]


def _pairs(names: Sequence[str], keys_DB: NDArray[np.uint64]) -> Iterable[tuple[int, int]]:
    """Neighbours after sorting by name, and by each key."""
    by_name = sorted(range(len(names)), key=names.__getitem__)
    yield from ((a, b) for a, b in itertools.pairwise(by_name) if names[a] == names[b])
    for keys_D in keys_DB.T:
        order = np.argsort(keys_D, kind="stable")
        same = (keys_D[order][1:] == keys_D[order][:-1]) & (keys_D[order][1:] > 0)
        yield from zip(order[:-1][same].tolist(), order[1:][same].tolist(), strict=True)
