"""The normaliser works on all candidates of a response at once; here they are done one by one, and it is the same."""

from collections import Counter
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bitnet_providers.teachers.common.logprobs import columns
from bitnet_providers.teachers.common.token_bytes import Candidate, Token

texts = st.sampled_from(["a", "b", "é", "", "\ufffd"])
logprobs = st.sampled_from([-0.5, -1.0, -2.0, 0.0005, 0.5, -9999.0, float("nan"), None])
raws = st.sampled_from([b"a", b"b", b"\xc3", None])
candidates = st.builds(
    lambda text, logprob, raw, number: Candidate(text, logprob, None if raw is None else list(raw), number),
    texts, logprobs, raws, st.sampled_from([None, None, 1, 2]),
)  # fmt: skip
tokens = st.builds(
    lambda raw, text, logprob, top: Token(text or raw.decode(), logprob, list(raw), None, top),
    st.sampled_from([b"a", b"b"]),
    st.sampled_from(["", "", "", "\ufffd", "other"]),
    logprobs,
    st.lists(candidates, max_size=5) | st.none(),
)


def spelt(token: Token) -> bytes:
    assert isinstance(token.bytes, list)
    return bytes(token.bytes)


def one_by_one(said: list[Token], top_k: int) -> tuple[list[list[tuple[bytes, float]]], Counter[str]]:
    """(bytes, log-probability) of each position's candidates, and what was mended."""
    counted: Counter[str] = Counter()
    plain = all(token.token.encode() == spelt(token) for token in said if token.token != "\ufffd")
    positions = []
    for token in said:
        seen: list[tuple[Any, ...]] = []
        kept = []
        for each in token.top_logprobs or []:
            raw = bytes(each.bytes) if isinstance(each.bytes, list) else None
            if raw is None and plain and each.token != "\ufffd":
                raw = each.token.encode()
            if plain and each.token == "é" and raw != b"\xc3\xa9":
                raw = None  # it contradicts itself
            if raw is None:
                counted["bytes_unknown"] += 1
                continue
            mark = (raw, str(each.logprob), each.id)
            if mark in seen:
                counted["duplicates"] += 1
                continue
            counted["same_bytes"] += raw != b"" and raw in [other[0] for other in seen]
            seen.append(mark)
            if each.logprob is None or not -9000 < each.logprob <= 0.001:
                counted["sentinels"] += 1
                continue
            kept.append((raw, each.logprob))
        in_order = sorted(kept, key=lambda each: -each[1])
        counted["unsorted"] += [each[1] for each in kept] != [each[1] for each in in_order]
        counted["short"] += len(kept) < top_k
        counted["sampled_outside"] += bool(kept) and spelt(token) not in [raw for raw, _ in kept]
        own = token.logprob
        counted["logprobs_missing"] += own is None or not -9000 < own <= 0.001
        positions.append(in_order)
    respelt, ties = False, 0
    for token, position in zip(said, positions, strict=True):
        same = [value for raw, value in position if value == token.logprob]
        if same and spelt(token) not in [raw for raw, _ in position]:
            respelt, ties = respelt or same[0] > position[-1][1], ties + 1
    if respelt or ties > sum(map(bool, positions)) / 2:
        counted["bytes_unknown"] += sum(map(len, positions))
        positions = [[] for _ in positions]
        counted["short"] = len(positions)
        counted["bytes_wrong"] = 1
    return positions, +counted


@given(st.lists(tokens, min_size=1, max_size=4))
def test_all_at_once_is_one_by_one(said: list[Token]) -> None:
    repairs: Counter[str] = Counter()
    made = columns(b"".join(spelt(token) for token in said).decode(), said, 3, repairs)
    expected, counted = one_by_one(said, 3)
    assert made.candidate_counts.tolist() == [len(position) for position in expected]
    flat = [each for position in expected for each in position]
    if not counted["unsorted"]:
        assert list(made.candidate_bytes) == [raw for raw, _ in flat]
    np.testing.assert_array_equal(made.candidate_logprobs, np.array([value for _, value in flat], np.float32))
    assert sorted(zip(made.candidate_bytes, made.candidate_logprobs.tolist(), strict=True)) == sorted(
        (raw, float(np.float32(value))) for raw, value in flat
    )
    assert +repairs == counted
