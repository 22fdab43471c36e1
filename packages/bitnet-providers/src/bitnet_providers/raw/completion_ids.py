"""What names a completion: the request and the number of its sample. Loads no Arrow, so that `bitnet plan` is quick."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Key = tuple[str, int]
"""What a completion is known by: the digest of its request, and which draw of it this is."""


def key_ids(keys: Sequence[Any]) -> NDArray[np.uint64]:
    """[n] keys → [n, 2]: 128 bits of a digest of each, so that a million of them take 16 MB."""
    digests = b"".join(hashlib.blake2b(f"{sha256}:{draw}".encode(), digest_size=16).digest() for sha256, draw in keys)
    return np.frombuffer(digests, np.uint64).reshape(-1, 2)
