"""`bitnet serve`: everything that is refused before a model is loaded."""

import json
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from bitnet_cli.main import cli


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """What looks like a model; nobody gets as far as loading it."""
    folder = tmp_path / "student"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bitnet_kde"}')
    return folder


def serve(*arguments: Any, **environment: str) -> Result:
    return CliRunner().invoke(cli, ["serve", *map(str, arguments)], env=environment)


def test_what_is_refused_at_once(student: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # no .env here
    (tmp_path / "student.gguf").write_bytes(b"GGUF")
    exposed = ("--expose", "--api-key-env", "A_KEY")
    for arguments, said in (
        (["nowhere"], "nowhere: nothing there"),
        ([student, "--host", "0.0.0.0"], "other machines could ask this server  → add --expose"),
        (
            [student, "--host", "0.0.0.0", "--expose"],
            "everybody who reaches this machine could ask  → add --api-key-env",
        ),
        ([student, "--host", "no.such.host.invalid", *exposed], "--host no.such.host.invalid"),
        ([student, "--host", "a" * 70 + ".example", *exposed], "name an address of this machine"),
        ([student, "--api-key-env", "NO_SUCH_KEY"], "--api-key-env: the environment variable NO_SUCH_KEY is not set"),
        ([student, "--runtime", "llamacpp", "--port", 0], "llama.cpp runs .gguf files"),
        ([tmp_path / "student.gguf", "--runtime", "torch", "--port", 0], "llama.cpp runs this file"),
    ):
        done = serve(*arguments, A_KEY="fake")
        assert done.exit_code == 2, done.output
        assert said in done.output
    assert serve(student, "--port", 70000).exit_code == 2
    assert serve(student, "--runtime", "paper").exit_code == 2


def test_a_port_that_is_taken_is_told_before_the_model_is_loaded(student: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        done = serve(student, "--port", other.getsockname()[1])
    assert done.exit_code == 2
    assert "can't be taken" in done.output
    assert "choose another --port" in done.output


def test_without_aiohttp_the_way_to_install_it_is_told(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = serve(student)
    assert done.exit_code == 2
    assert "pip install 'bitnet-cli[serve]'" in done.output


SLOW = """
import time
from bitnet_cli.serving.access_control import Access
from bitnet_cli.serving.routes import Service
from bitnet_cli.serving.start_server import bound_socket, run_server
from bitnet_cli.serving.waiting_line import Turns

class Slow:
    description = "slow"
    def pieces(self, prompt, sampling):
        print("asked", flush=True)
        time.sleep(600)
        yield

with bound_socket("127.0.0.1", 0) as listening:
    service = Service(model="tea", turns=Turns(Slow(), 4), access=Access(True, None), default_tokens=1, created=1,
                      log=lambda line: None)
    run_server(service, listening, lambda: print(listening.getsockname()[1], flush=True), lambda: print("last"))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_does_not_wait_for_the_token_that_is_being_computed(number: signal.Signals) -> None:
    process = subprocess.Popen([sys.executable, "-c", SLOW], stdout=subprocess.PIPE, text=True)
    statuses: list[int] = []
    try:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{int(process.stdout.readline())}/v1/completions"

        def ask() -> None:
            body = json.dumps({"prompt": "tea"}).encode()
            try:
                urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": "application/json"}))
            except urllib.error.HTTPError as error:
                statuses.append(error.code)

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        assert process.stdout.readline() == "asked\n"
        process.send_signal(number)
        assert process.wait(timeout=60) == 0
        asking.join(60)
        assert process.stdout.read() == "last\n"
    finally:
        process.kill()
        process.communicate()
    assert statuses == [503], "the server is stopping"
