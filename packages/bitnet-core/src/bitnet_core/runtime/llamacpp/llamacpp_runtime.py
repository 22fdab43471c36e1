"""A GGUF file in llama.cpp, answer by answer through its server's event streams."""

import math
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import attrs
import numpy as np
from numpy.typing import NDArray

from bitnet_core.runtime.contract import (
    Candidate,
    Ending,
    Message,
    Piece,
    Prompt,
    Sampling,
    Token,
    checked_size,
    texts,
)
from bitnet_core.runtime.llamacpp.server import LlamaCpp, llama_cpp
from bitnet_core.runtime.stop_strings import StopStrings

CONTEXT = 4096
"""Tokens of a conversation at most: what the file's own limit asks for may be gigabytes of cache."""


@attrs.frozen(eq=False)
class LlamaCppRuntime:
    """A running server with one file."""

    server: LlamaCpp
    description: str
    _names: dict[int, bytes] = attrs.field(factory=dict, init=False)
    """Bytes of the special tokens met so far."""

    def stream(self, prompt: Prompt, sampling: Sampling) -> Generator[str, None, Ending]:
        return texts(self.pieces(prompt, sampling))

    def pieces(self, prompt: Prompt, sampling: Sampling) -> Generator[Piece, None, Ending]:
        """Where tokens cut a character, llama.cpp tells of the last one only: one token then has the character's bytes
        and no log-probability.
        """
        asked, prompt = sampling.top_logprobs, checked_size(prompt, CONTEXT)
        body: dict[str, Any] = {
            "prompt": prompt if isinstance(prompt, str) else self._templated(prompt),
            "n_predict": sampling.max_new_tokens,
            "stream": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
            "top_k": 0,  # llama.cpp cuts at 40 tokens and at a twentieth of the likeliest unless it is told not to
            "min_p": 0.0,
            "cache_prompt": True,
            "n_probs": 0 if asked is None else max(1, asked),
        }
        # Not llama.cpp's own `stop`: tokens that it keeps back lose their bytes.
        stops, count, event = StopStrings(sampling.stop), 0, dict[str, Any]()
        for event in self.server.events("/completion", body):
            before, count = count, int(event.get("tokens_predicted", count))
            entries = event.get("completion_probabilities") or ()
            tokens = () if asked is None else tuple(self._token(entry, asked, count - before) for entry in entries)
            yield stops.add(Piece(event.get("content") or "", tokens))  # an empty one, too: its reader may have left
            if stops.found:
                break
        rest = stops.rest()
        if rest.text or rest.tokens:
            yield rest
        reason: Literal["stop", "length"] = "length" if event.get("stop_type") == "limit" else "stop"
        return Ending(reason, int(event.get("tokens_evaluated", 0)), count)

    def distributions_after(self, ids: Sequence[int], lengths: Sequence[int]) -> NDArray[np.float64]:
        """log p [len(lengths), V] of the next token after each of these prefixes; a request each, some 0.3 s."""
        return self.server.distributions_after(ids, lengths)

    def _templated(self, messages: Sequence[Message]) -> str:
        return str(self.server.post("/apply-template", {"messages": [dict(message) for message in messages]})["prompt"])

    def _token(self, entry: Mapping[str, Any], top: int, tokens: int) -> Token:
        """`tokens`: how many the entry stands for."""
        if tokens > 1:
            return Token(entry["id"], bytes(entry["bytes"]), math.nan)
        candidates = tuple(
            Candidate(each["id"], self._raw(each), each["logprob"]) for each in entry["top_logprobs"][:top]
        )
        return Token(entry["id"], self._raw(entry), entry["logprob"], candidates)

    def _raw(self, entry: Mapping[str, Any]) -> bytes:
        """llama.cpp gives special tokens no bytes."""
        if entry["bytes"]:
            return bytes(entry["bytes"])
        id_ = int(entry["id"])
        if id_ not in self._names:
            self._names[id_] = str(self.server.post("/detokenize", {"tokens": [id_]})["content"]).encode()
        return self._names[id_]


@contextmanager
def open_llama_cpp(gguf: Path, *, context: int = CONTEXT) -> Iterator[LlamaCppRuntime]:
    """`gguf` in llama.cpp on this machine's CPU. Raises CoreError, as `llama_cpp`."""
    threads = _threads()
    with llama_cpp(gguf, context=context, threads=threads) as server:
        yield LlamaCppRuntime(
            server, f"llama.cpp (xllamacpp {metadata.version('xllamacpp')}) on cpu, {threads} threads, {gguf.name}"
        )


def _threads() -> int:
    """OMP_NUM_THREADS, as torch takes it too, else every core."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    return int(told) if told.isdigit() and int(told) > 0 else os.cpu_count() or 1
