"""llama.cpp itself on a GGUF file: its tokens, its distributions, its chat (extra `llamacpp`).

xllamacpp runs llama.cpp's own server on a loopback port; everything here goes through that server's HTTP interface. It
has a process of its own (`serve_file`): what happens in C++ can neither hang nor end this one.
"""

import json
import re
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import attrs
import numpy as np
from numpy.typing import NDArray

from bitnet_core.errors import CoreError
from bitnet_core.runtime.contract import PromptError, RuntimeEndedError

SERVER = str(Path(__file__).with_name("serve_file.py"))
TIMEOUT_S = 600
"""For loading a file, and for each part of an answer."""
END_S = 5
CAUSE = re.compile(r"error loading model: (.+)")
"""Where llama.cpp's log says why; its exception doesn't."""
WARNING = re.compile(r"[\d.]+ W ")
"""A line of the log that ends no process."""


@attrs.frozen
class LlamaCpp:
    """A running server."""

    address: str
    process: "subprocess.Popen[bytes]" = attrs.field(repr=False)
    log: IO[bytes] = attrs.field(repr=False)

    def tokenize(self, text: str, *, begins: bool = False) -> list[int]:
        """Ids of `text`; special tokens in it count as such. Where it `begins` a prompt, with what the file says is put
        around one (begin, end)."""
        body = {"content": text, "add_special": begins, "parse_special": True}
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
        with self._open("/v1/models") as response:
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
                    raise _refused("stopped", path, content[:300], None)
                if name != "data":
                    continue
                if content == "[DONE]":
                    return
                event = json.loads(content)
                if "error" in event:
                    error = event["error"]
                    status = error.get("code") if isinstance(error, dict) else None
                    raise _refused("stopped", path, json.dumps(error)[:300], status)
                yield event
                if event.get("stop"):
                    return
            raise ConnectionError("the stream broke off")

    @contextmanager
    def _open(self, path: str, body: Mapping[str, Any] | None = None) -> Iterator[Any]:
        request = urllib.request.Request(
            self.address + path,
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
                yield response
        except urllib.error.HTTPError as error:
            told = error.read().decode("utf-8", "replace")[:300]
            raise _refused("refused", path, told, error.code) from error
        except (OSError, HTTPException) as error:
            try:
                self.process.wait(END_S)
            except subprocess.TimeoutExpired:
                raise CoreError(f"llama.cpp gave no whole answer to {path} ({error})", "try it again") from error
            why = _last_words(self.process, self.log)
            raise RuntimeEndedError(
                f"llama.cpp ended before it had answered {path} ({why})",
                "start anew, with more free memory if it was killed",
            ) from error


def _refused(how: str, path: str, told: str, status: object) -> CoreError:
    """A template that refuses a conversation is an error of the server's own there, but not here."""
    why = f"llama.cpp {how} {path}: {told}"
    if status in (400, 413, 422) or path == "/apply-template":
        return PromptError(why, "change the conversation, or the text")
    return CoreError(why, "try it again")


@contextmanager
def llama_cpp(gguf: Path, *, context: int = 512, threads: int = 1, exact_attention: bool = False) -> Iterator[LlamaCpp]:
    """llama.cpp with `gguf` loaded, on the CPU. `exact_attention` keeps it in float32, cache included (usually
    float16, which costs some 2e-6 nats).

    Raises CoreError where it isn't installed, can't load the file, or has ended when it is asked something.
    """
    if find_spec("xllamacpp") is None:
        raise CoreError("llama.cpp is not installed", "pip install 'bitnet-core[llamacpp]'")
    if not gguf.is_file():
        raise CoreError(f"{gguf}: no such file", "make it with `bitnet export`")
    options = [str(gguf), str(context), str(threads), str(int(exact_attention))]
    with tempfile.TemporaryFile() as log, _running(options, log) as process:
        yield LlamaCpp(_address(gguf, process, log), process, log)


@contextmanager
def _running(options: Sequence[str], log: IO[bytes]) -> Iterator["subprocess.Popen[bytes]"]:
    """`serve_file` with these `options`; it has ended afterwards."""
    process = subprocess.Popen(
        [sys.executable, "-P", SERVER, *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        # Ctrl-C in a terminal is for us, who may have another question before we end.
        start_new_session=True,
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
    )
    with process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _address(gguf: Path, process: "subprocess.Popen[bytes]", log: IO[bytes]) -> str:
    """Where it listens, once `gguf` is loaded. Raises CoreError where it ends, or takes longer than TIMEOUT_S."""
    assert process.stdout is not None
    deadline = threading.Timer(TIMEOUT_S, process.kill)
    deadline.start()
    try:
        address = process.stdout.readline().decode().strip()
        late = not deadline.is_alive()
    finally:
        deadline.cancel()
    if address and not late:
        return address
    process.wait()
    why = f"not within {TIMEOUT_S} s" if late else _last_words(process, log)
    if re.match("ImportError|ModuleNotFoundError", why):
        raise CoreError(f"llama.cpp can't be imported ({why})", "pip install --force-reinstall 'bitnet-core[llamacpp]'")
    raise CoreError(f"{gguf}: llama.cpp can't load it ({why})", "export it again, or bring a file for this llama.cpp")


def _last_words(process: "subprocess.Popen[bytes]", log: IO[bytes]) -> str:
    """Why a process has ended: what its log says about the file, else the signal and the last line."""
    log.seek(0)
    said = log.read().decode("utf-8", "replace").strip()
    if cause := CAUSE.search(said):
        return cause[1].strip()
    code = process.returncode
    last = next((line[-300:] for line in reversed(said.splitlines()) if not WARNING.match(line)), "")
    how = signal.Signals(-code).name if code < 0 else "" if last else f"exit code {code}"
    return ": ".join(filter(None, (how, last)))
