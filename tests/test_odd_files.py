"""What is no file where a file belongs: one line, exit code 2, no traceback, and nothing that waits for ever."""

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bitnet_cli.main import cli

ROOT = Path(__file__).parents[1]
MANIFEST = ROOT / "manifests/quickstart.toml"
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")


@pytest.fixture
def bitnet() -> Iterator[Callable[..., Result]]:
    """Runs a command here. What would wait for ever is a failure after a minute."""

    def call(*arguments: object) -> Result:
        signal.alarm(60)
        done = CliRunner().invoke(cli, [str(each) for each in arguments], input="tea\n")
        signal.alarm(0)
        return done

    def late(*_: object) -> None:
        raise AssertionError("it waits for ever")

    before = signal.signal(signal.SIGALRM, late)
    yield call
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def make(place: Path, kind: str) -> Path:
    match kind:
        case "pipe":
            os.mkfifo(place)
        case "socket":
            with socket.socket(socket.AF_UNIX) as bound:
                bound.bind(place.name)
        case "device":
            place.symlink_to("/dev/zero")
        case "folder":
            place.mkdir()
        case "loop":
            place.symlink_to(place)
        case "bytes":
            place.write_bytes(bytes(range(256)) * 8)
        case "empty":
            place.touch()
    return place


KINDS = ("pipe", "socket", "device", "folder", "loop", "bytes", "empty", "nothing")


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".toml", ".gguf", ".jsonl", ".parquet"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_command(
    bitnet: Callable[..., Result], kind: str, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    odd = make(tmp_path / f"odd{ending}", kind)
    settings = ("collect.prompts", "baseline.prompts", "teacher.model", "project.tokenizer", "project.chat_template")
    for arguments in (
        ("plan", odd), ("run", odd), ("probe", odd), ("dry-run", odd), ("report", odd), ("runs", "show", odd),
        ("runs", "ls", "-m", odd), ("traces", "validate", odd), ("traces", "stats", odd), ("traces", "show", odd),
        ("traces", "import", odd, "--out", tmp_path / "out"), ("plan", MANIFEST, "--env-file", odd),
        ("generate", odd, "tea"), ("chat", odd), ("export", odd), ("serve", odd, "--port", 0),
        *(("plan", MANIFEST, "--set", f'{name}="{odd}"', "--set", f'store.root="{tmp_path}"') for name in settings),
    ):  # fmt: skip
        done = bitnet(*arguments)
        assert done.exception is None or isinstance(done.exception, SystemExit), (arguments, done.exception)
        assert "Traceback" not in done.output
        assert done.exit_code in (0, 2), (arguments, done.output)
        if arguments[0] in ("run", "probe", "generate", "chat", "serve"):
            assert done.exit_code == 2, (arguments, done.output)
            assert "error: " in done.output


def test_a_pipe_is_refused_wherever_it_lies(bitnet: Callable[..., Result], tmp_path: Path) -> None:
    """In place of any file of a run or a model: not only where an argument names it."""
    (tmp_path / "stages" / "train").mkdir(parents=True)
    for name in ("manifest.resolved.toml", "environment.json", "stages/train/done.json"):
        os.mkfifo(tmp_path / name)
    done = bitnet("report", tmp_path)
    assert done.exit_code == 0, done.output
    with pytest.raises(OSError, match="a pipe or socket, not a file"):
        (tmp_path / "environment.json").read_text()


def test_a_working_folder_that_was_deleted(
    bitnet: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for arguments in (("plan", MANIFEST), ("runs", "ls"), ("report", "x"), ("plugins",)):
        done = bitnet(*arguments)
        assert done.exit_code == 2
        assert done.output == "error: the working folder is not there any more  → cd to another one\n"


@pytest.mark.slow
def test_a_home_is_no_model(bitnet: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not every file of a folder with far too many is read."""
    monkeypatch.setattr("bitnet_cli.pipeline.fingerprint.MOST_FILES", 20)
    monkeypatch.setattr("bitnet_cli.pipeline.fingerprint.digest_file", lambda path: pytest.fail(f"{path} was read"))
    for number in range(30):
        (tmp_path / f"{number}.txt").touch()
    from bitnet_cli.pipeline.fingerprint import digest_place

    assert digest_place(tmp_path) == "more than 20 files"
