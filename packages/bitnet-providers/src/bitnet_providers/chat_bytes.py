"""The tokens of a chat as bytes: the dump's own, or rebuilt from the texts where that is proved."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import numpy as np

from bitnet_providers.chat_lines import Chat, Entry
from bitnet_providers.contract import Completion
from bitnet_providers.raw_shard import completion_columns

REPLACEMENT = "\ufffd"
"""What a decoder puts where bytes are no whole character: the bytes can't be told from the text."""


def columns_of(chat: Chat, counted: Counter[str]) -> dict[str, Any]:
    """A completion's columns of the raw shard; adds to `counted`.

    A token's bytes are the dump's. Where it has none they are rebuilt from the texts only if that is proved: the texts
    of the tokens, one after the other, must give the response, with every replacement character standing for bytes that
    the tokens around it enclose. Several tokens inside one such gap become one entry: its bytes are the gap's, its
    log-probability their sum, its candidates those of the first. A candidate without bytes is rebuilt where its text
    has no replacement character and the response is proved to be the tokens' texts; else it is left out, so that its
    mass falls to other, and is counted. A response whose bytes can't be proved keeps its text and no tokens.
    """
    text = chat.content.encode("utf-8", "surrogatepass")
    entries: Sequence[Entry] | None = chat.entries
    plain = False
    if not chat.entries:
        counted["without_logprobs"] += 1
    elif all(entry.raw is not None for entry in chat.entries):
        spoken = b"".join(entry.raw or b"" for entry in chat.entries)
        counted["texts_differing"] += spoken != text
        text = spoken
        plain = all(entry.text.encode("utf-8", "surrogatepass") == entry.raw for entry in _whole(chat.entries))
    else:
        entries = rebuilt(chat.entries, text, counted)
        plain = entries is not None
        if entries is None:
            counted["without_provable_bytes"] += 1
    used = entries or ()
    counts: list[int] = []
    candidate_bytes: list[bytes] = []
    candidate_logprobs: list[float] = []
    for entry in used:
        seen: set[bytes] = set()
        kept = 0
        for candidate_text, raw, logprob in entry.top:
            if raw is None and plain and REPLACEMENT not in candidate_text:
                raw = candidate_text.encode("utf-8", "surrogatepass")
            counted["sentinel_logprobs"] += logprob < -9000
            if raw is None:
                counted["candidates_without_bytes"] += 1
                continue
            counted["duplicate_candidates"] += raw in seen
            seen.add(raw)
            candidate_bytes.append(raw)
            candidate_logprobs.append(logprob)
            kept += 1
        counts.append(kept)
        counted["short_positions"] += len(entry.top) < chat.top_k
        counted["sampled_outside_candidates"] += bool(entry.top) and entry.raw not in seen
        counted["missing_logprobs"] += entry.logprob != entry.logprob or entry.logprob < -9000
    return completion_columns(
        Completion(
            text=text,
            token_logprobs=np.array([entry.logprob for entry in used], dtype=np.float32),
            candidate_counts=np.array(counts, dtype=np.int32),
            candidate_logprobs=np.array(candidate_logprobs, dtype=np.float32),
            finish_reason=chat.finish_reason,  # type: ignore[arg-type]
            model=chat.model,
            prompt_tokens=chat.prompt_tokens,
            latency_s=float("nan"),
            token_bytes=tuple(entry.raw or b"" for entry in used),
            candidate_bytes=tuple(candidate_bytes),
        )
    )


def _whole(entries: Sequence[Entry]) -> Iterator[Entry]:
    return (entry for entry in entries if REPLACEMENT not in entry.text)


def rebuilt(entries: Sequence[Entry], text: bytes, counted: Counter[str]) -> list[Entry] | None:
    """The entries with bytes that spell `text`, or None where that can't be proved.

    A token is known by its bytes, or by a text without replacement characters. Unknown ones between two known ones (or
    the text's end) take the bytes that lie between those; the place of the next known run must be the only one possible
    up to it, so its bytes may not occur earlier in what is left (for the last run: it must end the text).
    """
    result: list[Entry] = []
    place, index = 0, 0
    while index < len(entries):
        known = _known(entries[index])
        if known is not None:
            if not text.startswith(known, place):
                return None
            counted["bytes_rebuilt"] += entries[index].raw is None
            result.append(attrs.evolve(entries[index], raw=known))
            place += len(known)
            index += 1
            continue
        stop = next((i for i in range(index, len(entries)) if _known(entries[i]) is not None), len(entries))
        following = b""
        for entry in entries[stop:]:
            known = _known(entry)
            if known is None:
                break
            following += known
        end = len(text) if stop == len(entries) else _only_place(text, following, place, entries[stop:])
        gap = entries[index:stop]
        if end is None or end <= place:
            return None
        counted["bytes_rebuilt"] += 1
        counted["tokens_joined"] += len(gap) - 1
        result.append(attrs.evolve(gap[0], raw=text[place:end], logprob=sum(entry.logprob for entry in gap)))
        place, index = end, stop
    return result if place == len(text) else None


def _known(entry: Entry) -> bytes | None:
    if entry.raw is not None:
        return entry.raw
    return None if REPLACEMENT in entry.text else entry.text.encode("utf-8", "surrogatepass")


def _only_place(text: bytes, following: bytes, place: int, rest: Sequence[Entry]) -> int | None:
    """Where the known run `following` begins, if only one place fits."""
    if all(_known(entry) is not None for entry in rest):
        return len(text) - len(following) if following and text.endswith(following) else None
    first = text.find(following, place + 1) if following else -1
    return first if first >= 0 and text.find(following, first + 1) < 0 else None
