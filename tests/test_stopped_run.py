"""A run that is told to end (SIGTERM: Slurm, spot machines, `docker stop`; SIGHUP: a lost terminal): as with Ctrl-C."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from loopback.counting_server import counts_of, running

ROOT = Path(__file__).parents[1]
MANIFEST = """
manifest_version = 1
[run]
name = "told"
stages = ["storage", "collect"]
[store]
kind = "local"
root = "kept"
work = "work"
lease_seconds = 3600
[teacher]
kind = "openai-compatible"
model = "counting-1"
base_url = "{url}/v1"
[collect]
prompts = "prompts.txt"
top_k = 5
max_new_tokens = 8
concurrency = 4
"""
PROMPTS = 40


@pytest.fixture
def server() -> Iterator[str]:
    with running(tokens=4, candidates=5, latency_s=0.3) as url:
        yield url


def wait_for(what: Callable[[], object], process: "subprocess.Popen[str]") -> None:
    until = time.monotonic() + 120
    while not what():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.02)


def set_signals(background: bool) -> None:
    """As a terminal starts a program, whoever started the tests (nohup, say, ignores SIGHUP)."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN if background else signal.SIG_DFL)


def begin(folder: Path, *arguments: str, background: bool = False) -> "subprocess.Popen[str]":
    """`background`: as a shell's ``&`` starts it, with SIGINT ignored."""
    environment = {name: value for name, value in os.environ.items() if name != "SKIP_EXTERNAL"}
    return subprocess.Popen(
        [str(Path(sys.executable).with_name("bitnet")), "run", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=partial(set_signals, background),
    )


def questions(url: str, what: str = "answered") -> list[int]:
    """How often each prompt was; the probe before the collection asks something else."""
    return [times for key, times in counts_of(url)[what].items() if "question" in key]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "background"), [(signal.SIGTERM, False), (signal.SIGHUP, False), (signal.SIGTERM, True)]
)
def test_a_collection_that_is_told_to_end(
    server: str, tmp_path: Path, number: signal.Signals, background: bool
) -> None:
    """The answers are pushed and the lease is returned: another machine goes on at once, and pays nothing twice."""
    (tmp_path / "prompts.txt").write_text("\n".join(f"question {n}" for n in range(PROMPTS)))
    (tmp_path / "told.toml").write_text(MANIFEST.format(url=server))
    process = begin(tmp_path, "told.toml", background=background)
    wait_for(lambda: len(questions(server)) >= 12, process)
    if background:
        process.send_signal(signal.SIGINT)  # somebody's Ctrl-C at the terminal: not for this one
    process.send_signal(number)
    process.send_signal(number)  # Slurm and shells send it to a process and to its group
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, said
    assert "What the teacher has said is kept, too" in said
    assert list((tmp_path / "kept/told/lease").glob("*")) == []
    assert any("journal-" in path.name for path in (tmp_path / "kept/told/files/raw").iterdir())

    other = begin(tmp_path, "told.toml", "--set", 'store.work="another machine"')
    said, _ = other.communicate(timeout=120)
    assert other.returncode == 0, said
    asked = questions(server, "arrived")
    assert len(asked) == PROMPTS
    assert sum(asked) - PROMPTS <= 4, "only what was under way is asked again"
