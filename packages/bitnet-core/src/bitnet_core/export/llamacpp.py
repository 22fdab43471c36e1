"""llama.cpp itself, in this process, on a GGUF file: its tokens, its distributions, its chat (extra `llamacpp`).

xllamacpp runs llama.cpp's own server on a loopback port; everything here goes through that server's HTTP interface.
"""

import json
import os
import re
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from pathlib import Path
from typing import IO, Any

import attrs
import numpy as np
from numpy.typing import NDArray

from bitnet_core.errors import CoreError

TIMEOUT_S = 600
CAUSE = re.compile(r"error loading model: (.+)")
"""Where llama.cpp's log says why; its exception doesn't."""


@attrs.frozen
class LlamaCpp:
    """A running server."""

    address: str

    def tokenize(self, text: str) -> list[int]:
        """Ids of `text` without begin or end; special tokens in it count as such."""
        body = {"content": text, "add_special": False, "parse_special": True}
        return [int(id_) for id_ in self.post("/tokenize", body)["tokens"]]

    def distributions(self, ids: Sequence[int], count: int) -> NDArray[np.float64]:
        """log p [`count`, V] of the token after each of the last `count` prefixes of `ids`, nats."""
        return self.distributions_after(ids, range(len(ids) - count + 1, len(ids) + 1))

    def distributions_after(self, ids: Sequence[int], lengths: Sequence[int]) -> NDArray[np.float64]:
        """log p [len(lengths), V] of the token after the first `length` of `ids`, for each of `lengths`, nats.

        The model's own distributions, before any sampling, renormalised: llama.cpp's sum of float32 exponentials is
        off by some 1e-4. One request a prefix, each drawing one token that is forced to be whole text: llama.cpp gives
        no distribution along with a token that is a part of a character.
        """
        size, whole = self.vocabulary_size(), self.tokenize("a")[0]
        logprobs = np.full((len(lengths), size), -np.inf)
        for row, length in zip(logprobs, lengths, strict=True):
            body = {
                "prompt": list(ids[:length]),
                "n_predict": 1,
                "n_probs": size,
                "temperature": 0.0,
                "logit_bias": [[whole, 1e6]],
                "cache_prompt": True,
            }
            (entry,) = self.post("/completion", body)["completion_probabilities"]
            row[[each["id"] for each in entry["top_logprobs"]]] = [each["logprob"] for each in entry["top_logprobs"]]
        top = logprobs.max(1, keepdims=True)
        normalised: NDArray[np.float64] = logprobs - top - np.log(np.exp(logprobs - top).sum(1, keepdims=True))
        return normalised

    def chat(self, messages: Sequence[Mapping[str, str]], max_tokens: int) -> Mapping[str, Any]:
        """A greedy answer through the OpenAI-compatible endpoint: its whole response."""
        body = {"messages": list(messages), "max_tokens": max_tokens, "temperature": 0.0}
        answer: Mapping[str, Any] = self.post("/v1/chat/completions", body)
        return answer

    def vocabulary_size(self) -> int:
        with urllib.request.urlopen(f"{self.address}/v1/models", timeout=TIMEOUT_S) as response:
            return int(json.load(response)["data"][0]["meta"]["n_vocab"])

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        with self._open(path, body) as response:
            return json.load(response)

    def events(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The JSON events of a streamed answer as they come (``data:`` lines; ``[DONE]`` ends them)."""
        with self._open(path, body) as response:
            for line in response:
                name, _, content = line.decode("utf-8", "replace").strip().partition(": ")
                if name == "error":
                    raise CoreError(f"llama.cpp stopped {path}: {content[:300]}")
                if name != "data" or content == "[DONE]":
                    continue
                event = json.loads(content)
                if "error" in event:
                    raise CoreError(f"llama.cpp stopped {path}: {json.dumps(event['error'])[:300]}")
                yield event

    @contextmanager
    def _open(self, path: str, body: Mapping[str, Any]) -> Iterator[Any]:
        request = urllib.request.Request(
            self.address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
                yield response
        except urllib.error.HTTPError as error:
            told = error.read().decode("utf-8", "replace")[:300]
            raise CoreError(f"llama.cpp refused {path}: {told}") from error


@contextmanager
def llama_cpp(gguf: Path, *, context: int = 512, threads: int = 1, exact_attention: bool = False) -> Iterator[LlamaCpp]:
    """llama.cpp with `gguf` loaded, on the CPU. `exact_attention` keeps it in float32, cache included (usually
    float16, which costs some 2e-6 nats).

    Raises CoreError where it isn't installed or can't load the file.
    """
    try:
        import xllamacpp
    except ImportError as error:
        raise CoreError("llama.cpp is not installed: pip install 'bitnet-core[llamacpp]'") from error
    if not gguf.is_file():
        raise CoreError(f"{gguf}: no such file; make it with `bitnet export`")
    params = xllamacpp.CommonParams()
    params.model.path = str(gguf)
    params.n_ctx, params.n_parallel, params.port, params.n_gpu_layers = context, 1, 0, 0
    if exact_attention:
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    with _no_stderr(), tempfile.TemporaryFile() as log:
        try:
            with _stderr_in(log):
                server = xllamacpp.Server(params)
        except (RuntimeError, ValueError) as error:
            log.seek(0)
            cause = CAUSE.search(log.read().decode("utf-8", "replace"))
            why = cause[1].strip() if cause else error
            raise CoreError(
                f"{gguf}: llama.cpp can't load it ({why}); export it again, or bring a file for this llama.cpp"
            ) from error
        try:
            address = str(server.listening_address)
            # A server that goes before its loop has begun waits for that loop for ever.
            urllib.request.urlopen(f"{address}/health", timeout=TIMEOUT_S).close()
            yield LlamaCpp(address)
        finally:
            del server


@contextmanager
def _no_stderr() -> Iterator[None]:
    """llama.cpp writes a page of log to the process's stderr, and xllamacpp has no switch for it.

    Python's own messages still get there.
    """
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    sys.stderr.flush()
    try:
        os.dup2(nowhere, 2)
        with (
            open(kept, "w", encoding="utf-8", errors="replace", buffering=1, closefd=False) as ours,
            redirect_stderr(ours) if _is_stderr(sys.stderr) else nullcontext(),
        ):
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def _stderr_in(log: IO[bytes]) -> Iterator[None]:
    """What the process writes to its stderr meanwhile goes to `log`."""
    before = os.dup(2)
    try:
        os.dup2(log.fileno(), 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def _is_stderr(stream: Any) -> bool:
    """Whether `stream` is the process's own: a test's or a notebook's goes elsewhere."""
    try:
        return bool(stream.fileno() == 2)
    except (OSError, ValueError, AttributeError):
        return False
