"""llama.cpp's answers against torch's, on a student without activation quantisation, where both say the same."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from bitnet_core.config.export import GGUFOptions
from bitnet_core.errors import CoreError
from bitnet_core.export.folder import export
from bitnet_core.export.gguf.write import gguf_exporter
from bitnet_core.runtime.contract import Runtime, Sampling, answer
from bitnet_core.runtime.llamacpp import server as llamacpp
from bitnet_core.runtime.llamacpp.server import llama_cpp
from bitnet_core.runtime.open import open_runtime
from bitnet_core.runtime.torch_runtime import open_torch

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "The capital of France is"}]


@pytest.fixture(scope="module")
def folder(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkpoint = make_checkpoint(activation_bits=16, tables_in_8_bits=True)
    out = tmp_path_factory.mktemp("exports")
    export(checkpoint, {"gguf": gguf_exporter(GGUFOptions(types=("f32",)))}, out)
    (out / "checkpoint").symlink_to(checkpoint)
    return out


@pytest.fixture
def gguf(folder: Path) -> Iterator[Runtime]:
    with open_runtime(folder / "student-f32.gguf") as runtime:
        yield runtime


@pytest.mark.parametrize("prompt", [CHAT, "The capital of"])
def test_greedy_answers_are_torchs(folder: Path, gguf: Runtime, prompt: list[dict[str, str]] | str) -> None:
    pieces: list[str] = []
    ours = answer(gguf, prompt, Sampling(max_new_tokens=12), pieces.append)
    with open_torch(folder / "checkpoint", precision="fp32") as runtime:
        theirs = answer(runtime, prompt, Sampling(max_new_tokens=12))
    assert ours.prompt_tokens == theirs.prompt_tokens
    assert ours.text == theirs.text
    assert ours.reason == theirs.reason
    assert ours.tokens == theirs.tokens
    assert "".join(pieces) == ours.text
    assert len(pieces) > 1


def test_one_seed_one_answer_and_another_another(gguf: Runtime) -> None:
    def draw(seed: int) -> str:
        return answer(gguf, CHAT, Sampling(max_new_tokens=20, temperature=1.5, seed=seed)).text

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(4)}) > 1


def test_an_answer_that_is_left_early_does_not_stop_the_next(gguf: Runtime) -> None:
    stream = gguf.stream(CHAT, Sampling(max_new_tokens=50))
    next(stream)
    stream.close()
    assert answer(gguf, CHAT, Sampling(max_new_tokens=2)).tokens <= 2


def test_a_prompt_longer_than_the_context_is_refused(gguf: Runtime) -> None:
    with pytest.raises(CoreError, match="context"):
        answer(gguf, [{"role": "user", "content": "tea " * 5000}], Sampling(max_new_tokens=1))


def test_nothing_of_llama_cpps_log_is_in_our_output(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with open_runtime(folder / "student-f32.gguf") as runtime:
        answer(runtime, CHAT, Sampling(max_new_tokens=2))
    assert capfd.readouterr() == ("", "")


def test_a_server_that_is_left_at_once_ends(folder: Path) -> None:
    for _ in range(5):
        with llama_cpp(folder / "student-f32.gguf") as server:
            pass
        assert server.process.returncode is not None


def test_several_at_once_do_not_touch_each_other(folder: Path) -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(llama_cpp(folder / "student-f32.gguf")) for _ in range(3)]
        ids = servers[0].tokenize("The capital of France")
        with ThreadPoolExecutor() as pool:
            answers = list(pool.map(lambda server: server.distributions(ids, 2), servers))
        np.testing.assert_array_equal(answers[1:], answers[:1] * 2)
        servers[0].process.kill()
        np.testing.assert_allclose(servers[1].distributions(ids, 2), answers[1], atol=1e-4)  # by its cache now


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_a_server_that_dies_is_told_in_the_middle_of_an_answer_and_after(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llamacpp, "END_S", 100)  # writing its core may take a while
    with llama_cpp(folder / "student-f32.gguf") as server:
        # So many bytes that the server can't have sent them all while we have read only the first.
        body = {"prompt": "tea", "n_predict": 500, "stream": True, "ignore_eos": True, "n_probs": 400}
        events = server.events("/completion", body)
        next(events)
        server.process.send_signal(signal.SIGSEGV)
        with pytest.raises(CoreError, match=r"ended before it had answered /completion \(SIGSEGV\)  → start anew"):
            list(events)
        with pytest.raises(CoreError, match=r"ended before it had answered /tokenize \(SIGSEGV\)  → start anew"):
            server.tokenize("tea")
        with pytest.raises(CoreError, match=r"ended before it had answered /v1/models"):
            server.vocabulary_size()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_a_server_that_stands_still_is_told_and_ends(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with llama_cpp(folder / "student-f32.gguf") as server:
        monkeypatch.setattr(llamacpp, "TIMEOUT_S", 1)
        monkeypatch.setattr(llamacpp, "END_S", 1)
        server.process.send_signal(signal.SIGSTOP)
        _, status = os.waitpid(server.process.pid, os.WUNTRACED)  # all its threads stand still now
        assert os.WIFSTOPPED(status)
        with pytest.raises(CoreError, match=r"gave no whole answer to /tokenize \(.*timed out.*\)  → try it again"):
            server.tokenize("tea")
    assert server.process.returncode == -signal.SIGKILL


PARENT = """
import os, signal, sys
from pathlib import Path
from bitnet_core.runtime.llamacpp.server import llama_cpp
with llama_cpp(Path(sys.argv[1])) as server:
    print(server.address, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_a_parent_that_is_killed_leaves_no_server(folder: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(folder / "student-f32.gguf")]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    port = int(done.stdout.rpartition(":")[2])
    for _ in range(600):
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)):
                return
        time.sleep(0.1)
    pytest.fail("it still listens a minute later")


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Path]:
    """``stand_in(code)``: the server's process imports this code for xllamacpp. A file to load."""

    def make(code: str) -> Path:
        (tmp_path / "xllamacpp.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        (tmp_path / "student.gguf").write_bytes(b"")
        return tmp_path / "student.gguf"

    return make


PARAMETERS = """
import ctypes, os, signal, sys, threading
from unittest.mock import MagicMock as CommonParams
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "def Server(params): os.write(1, b'GGML_ASSERT(n > 0) failed\\n'); os.abort()",
            r"can't load it \(SIGABRT: GGML_ASSERT\(n > 0\) failed\)  → export it again",
        ),
        ("def Server(params): os._exit(7)", r"can't load it \(exit code 7\)"),
        ("import no_such_library", r"can't be imported \(ModuleNotFoundError: .*\)  → pip install"),
        ("Server = lambda params: ctypes.PyDLL(None).sleep(600)", r"can't load it \(not within 2 s\)"),
    ],
    ids=["aborts", "exits", "has a library missing", "waits for ever"],
)
def test_a_llama_cpp_that_fails_while_it_loads_is_told(
    stand_in: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, code: str, message: str
) -> None:
    monkeypatch.setattr(llamacpp, "TIMEOUT_S", 2 if "sleep" in code else 600)
    with pytest.raises(CoreError, match=message), llama_cpp(stand_in(PARAMETERS + code)):
        pass


STUBBORN = """
class Server:
    def __init__(self, params):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    @property
    def listening_address(self):
        os.write(1, b"http://not-the-address\\n")
        threading.Timer(0.5, ctypes.PyDLL(None).sleep, [600]).start()  # holds the interpreter, as C++ can
        return "http://127.0.0.1:9"
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_a_server_that_hears_neither_its_stdin_nor_a_signal_is_killed(
    stand_in: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llamacpp, "END_S", 2)
    with llama_cpp(stand_in(PARAMETERS + STUBBORN)) as server:
        assert server.address == "http://127.0.0.1:9"
    assert server.process.returncode == -signal.SIGKILL


def test_bits_can_not_be_chosen_and_a_damaged_file_is_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CoreError, match="leave --bits out"), open_runtime(folder / "student-f32.gguf", bits=8):
        pass
    (tmp_path / "student.gguf").write_bytes(b"GGUF and then nothing")
    with pytest.raises(CoreError, match="can't load it"), open_runtime(tmp_path / "student.gguf"):
        pass


def test_without_llama_cpp_the_way_to_install_it_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(CoreError, match="pip install 'bitnet-core"), open_runtime(folder / "student-f32.gguf"):
        pass


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(CoreError, match="no such file  → make it with `bitnet export`"), llama_cpp(tmp_path / "a.gguf"):
        pass
