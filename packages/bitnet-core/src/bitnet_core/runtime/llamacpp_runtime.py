"""A GGUF file in llama.cpp, answer by answer through its server's event streams."""

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import attrs
import numpy as np
from numpy.typing import NDArray

from bitnet_core.export.llamacpp import LlamaCpp, llama_cpp
from bitnet_core.runtime.contract import Ending, Prompt, Sampling

CONTEXT = 4096
"""Tokens of a conversation at most: what the file's own limit asks for may be gigabytes of cache."""


@attrs.frozen
class LlamaCppRuntime:
    """A running server with one file."""

    server: LlamaCpp
    description: str

    def stream(self, prompt: Prompt, sampling: Sampling) -> Generator[str, None, Ending]:
        body: dict[str, Any] = {
            "stream": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
            "top_k": 0,  # llama.cpp cuts at 40 tokens and at a twentieth of the likeliest unless it is told not to
            "min_p": 0.0,
            "cache_prompt": True,
        }
        if isinstance(prompt, str):
            return (yield from self._text(body | {"prompt": prompt, "n_predict": sampling.max_new_tokens}))
        messages = [dict(message) for message in prompt]
        return (yield from self._chat(body | {"messages": messages, "max_tokens": sampling.max_new_tokens}))

    def distributions_after(self, ids: Sequence[int], lengths: Sequence[int]) -> NDArray[np.float64]:
        """log p [len(lengths), V] of the next token after each of these prefixes; a request each, some 0.3 s."""
        return self.server.distributions_after(ids, lengths)

    def _chat(self, body: dict[str, Any]) -> Generator[str, None, Ending]:
        reason, usage = "length", {"prompt_tokens": 0, "completion_tokens": 0}
        for event in self.server.events("/v1/chat/completions", body | {"stream_options": {"include_usage": True}}):
            usage = event.get("usage") or usage
            for choice in event.get("choices") or ():
                reason = choice.get("finish_reason") or reason
                if piece := choice["delta"].get("content"):
                    yield piece
        return Ending(
            "stop" if reason == "stop" else "length", int(usage["prompt_tokens"]), int(usage["completion_tokens"])
        )

    def _text(self, body: dict[str, Any]) -> Generator[str, None, Ending]:
        last: dict[str, Any] = {}
        for last in self.server.events("/completion", body):
            if piece := last.get("content"):
                yield piece
        reason: Literal["stop", "length"] = "length" if last.get("stop_type") == "limit" else "stop"
        return Ending(reason, int(last.get("tokens_evaluated", 0)), int(last.get("tokens_predicted", 0)))


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
