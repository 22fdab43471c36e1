"""A run told to programs, and to people who want to hear only what goes wrong."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bitnet_cli.errors import Problem, ProblemsError, UserError
from bitnet_cli.reporter.events import FORMAT, Events
from bitnet_cli.reporter.failure_message import explain
from bitnet_cli.reporter.progress import Pace, Reporter, is_live
from bitnet_storage.contract import StorageError

DOC = Path(__file__).parents[4] / "docs" / "events.md"
MANIFEST = """
manifest_version = 1
[run]
name = "tiny"
stages = ["storage", "report"]
[store]
kind = "local"
root = "runs"
"""


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Told:
    """A reporter with events, and what it said."""

    def __init__(self, **options: Any) -> None:
        self.stream, self.shown, self.errors, self.clock = io.StringIO(), io.StringIO(), io.StringIO(), Clock()
        self.reporter = Reporter(
            Console(file=self.shown, width=200), self.clock, Console(file=self.errors, width=200),
            events=Events(self.stream, now=lambda: "now"), **options,
        )  # fmt: skip

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]


def failure(error: BaseException, stage: str | None = "train") -> Any:
    return explain(error, stage=stage, go_on="bitnet run m.toml", folder=None)


def test_a_run_from_start_to_end(tmp_path: Path) -> None:
    told = Told()
    told.reporter.run_started("mine", tmp_path, ["storage", "train"])
    told.reporter.stage_skipped("storage", "skipped: done")
    told.reporter.stage_started("train", "resuming", "stopped before it finished")
    told.reporter.stage_line("train", "durable: 3 files")
    told.reporter.stage_done("train", 1.23456, {"headline": "150 steps", "warnings": ["two rows are dead"]})
    told.reporter.run_finished(tmp_path, 2.0)
    assert told.events() == [
        {"event": "run_started", "time": "now", "format": FORMAT, "run": "mine", "folder": str(tmp_path),
         "stages": ["storage", "train"]},
        {"event": "stage_skipped", "time": "now", "stage": "storage", "why": "skipped: done", "is_done": True},
        {"event": "stage_started", "time": "now", "stage": "train", "why": "stopped before it finished",
         "resumes": True},
        {"event": "notice", "time": "now", "stage": "train", "text": "durable: 3 files"},
        {"event": "stage_done", "time": "now", "stage": "train", "seconds": 1.235,
         "summary": {"headline": "150 steps", "warnings": ["two rows are dead"]}},
        {"event": "warning", "time": "now", "stage": "train", "text": "two rows are dead"},
        {"event": "run_finished", "time": "now", "folder": str(tmp_path), "report": None, "seconds": 2.0,
         "exit_code": 0},
    ]  # fmt: skip
    assert told.shown.getvalue() == told.errors.getvalue() == ""


def test_progress_comes_once_a_second_and_at_the_end() -> None:
    told = Told()
    with told.reporter.stage("train") as on_progress:
        for step in range(101):
            told.clock.now = step / 10
            on_progress(step, 100, f"loss {step}")
    progress = told.events()
    assert [each["done"] for each in progress] == [*range(0, 101, 10)]
    assert progress[5] == {
        "event": "progress", "time": "now", "stage": "train", "done": 50, "total": 100, "seconds": 5.0,
        "seconds_left": 5.0, "note": "loss 50",
    }  # fmt: skip
    assert progress[-1]["seconds_left"] is None


def test_an_unknown_total_is_none() -> None:
    told = Told()
    with told.reporter.stage("collect") as on_progress:
        on_progress(1, 0, "")
    assert told.events()[0]["total"] is None


@pytest.mark.parametrize(
    ("error", "why", "fix", "code"),
    [
        (MemoryError("8 GB"), "out of memory (8 GB)", "Lower the batch size", 2),
        (OSError(28, "No space left on device"), "the disk is full", "Free some space", 2),
        (ValueError("odd"), "ValueError: odd", "please report it", 1),
    ],
)
def test_a_failure_in_parts(error: Exception, why: str, fix: str, code: int) -> None:
    told = Told()
    told.reporter.run_failed(failure(error), "train")
    (event,) = told.events()
    assert event["event"] == "run_failed"
    assert event["stage"] == "train"
    assert event["what"].startswith("stage train failed")
    assert event["why"] == why
    assert fix in event["fix"]
    assert event["go_on"] == "bitnet run m.toml"
    assert event["exit_code"] == code
    said = told.errors.getvalue()
    assert all(part in said for part in (event["what"], why, fix, "go on with: bitnet run m.toml"))


def test_a_stop_is_no_defect() -> None:
    stopped = failure(KeyboardInterrupt(), "collect")
    assert (stopped.what, stopped.exit_code, stopped.fix) == ("stopped in stage collect", 130, "")


@pytest.mark.parametrize(
    ("error", "why", "fix", "shown"),
    [
        (UserError("k is 0", "set it to 1"), "k is 0", "set it to 1", "k is 0  → set it to 1"),
        (StorageError("the disk is full", "free some"), "the disk is full", "free some", "is full  → free some"),
        (StorageError("it is gone"), "it is gone", "", "it is gone"),
        (
            ProblemsError([Problem("a", "b"), Problem("c", "d")], headline="m.toml: 2 problems"),
            "m.toml: 2 problems\n  a\n  c",
            "b\nd",
            "m.toml: 2 problems\n  a  → b\n  c  → d",
        ),
    ],
)
def test_an_errors_fix_is_a_field_of_its_own(error: Exception, why: str, fix: str, shown: str) -> None:
    told = Told()
    told.reporter.run_failed(failure(error), "train")
    (event,) = told.events()
    assert (event["why"], event["fix"], event["exit_code"]) == (why, fix, 2)
    assert shown in told.errors.getvalue()


def test_nobody_reads_any_more() -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    events = Events(Closed())
    events.emit("notice", text="one")
    events.emit("notice", text="two")


def test_a_name_that_is_no_utf8_does_not_end_the_events() -> None:
    raw = io.BytesIO()
    events = Events(io.TextIOWrapper(raw, encoding="utf-8"), now=lambda: "now")
    events.emit("notice", text=os.fsdecode(b"caf\xe9 \xc3\xa9"))
    events.emit("run_finished")
    lines = [json.loads(line) for line in raw.getvalue().decode("utf-8").splitlines()]
    assert [line["event"] for line in lines] == ["notice", "run_finished"]
    assert os.fsencode(lines[0]["text"]) == b"caf\xe9 \xc3\xa9"


def test_quiet_tells_warnings_and_failures_alone(tmp_path: Path) -> None:
    shown, errors = io.StringIO(), io.StringIO()
    reporter = Reporter(Console(file=shown), errors=Console(file=errors, width=200), quiet=True)
    reporter.keep_in(tmp_path / "run.log")
    reporter.run_started("mine", tmp_path, ["train"])
    reporter.stage_started("train", "running", "not done yet")
    with reporter.stage("train") as on_progress:
        on_progress(1, 1, "loss 2")
    reporter.stage_done("train", 1.0, {"warnings": ["two rows are dead"]})
    reporter.run_failed(failure(MemoryError("8 GB")))
    assert shown.getvalue() == ""
    lines = errors.getvalue().splitlines()
    assert lines[0] == "train     two rows are dead"
    assert lines[1].startswith("stage train failed: out of memory")
    log = (tmp_path / "run.log").read_text()
    assert "train     1/1 · 0 s · loss 2" in log, "the log has everything all the same"


def test_time_left_counts_from_where_the_work_went_on() -> None:
    clock = Clock()
    pace = Pace(clock)
    clock.now = 20.0
    assert pace.at(100, 200) == (20.0, None), "100 were there before"
    clock.now = 30.0
    assert pace.at(150, 200) == (30.0, 10.0)
    assert pace.at(200, 200) == (30.0, None)


def test_plain_lines_say_how_long_it_takes() -> None:
    shown, clock = io.StringIO(), Clock()
    with Reporter(Console(file=shown, width=200), clock).stage("evaluate") as on_progress:
        on_progress(0, 10, "")
        clock.now = 4.0
        on_progress(2, 10, "")
        on_progress(4, 10, "20 s left, 3 at once")
    assert shown.getvalue().splitlines() == [
        "evaluate  2/10 · 4 s · 16 s left", "evaluate  4/10 · 4 s · 20 s left, 3 at once",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("terminal", "environment", "live"),
    [
        (True, {}, True),
        (True, {"CI": "true"}, False),
        (True, {"CI": "false"}, True),
        (False, {}, False),
    ],
)
def test_where_a_bar_moves(terminal: bool, environment: dict[str, str], live: bool) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal, _environ={"TERM": "xterm"})
    assert is_live(console, environment) is live


def test_a_bar_says_which_stage_of_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    shown = io.StringIO()
    console = Console(file=shown, width=200, force_terminal=True, _environ={"TERM": "xterm"})
    reporter = Reporter(console)
    reporter.run_started("mine", Path("runs/mine"), ["collect", "train"])
    with reporter.stage("train") as on_progress:
        on_progress(1, 2, "loss 2.0  98 tok/s")
    assert "train     2/2" in shown.getvalue()
    assert "loss 2.0  98 tok/s" in shown.getvalue()


# The command


def bitnet(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "tiny.toml").write_text(MANIFEST)
    script = "import os, sys; from bitnet_cli.main import cli; cli(sys.argv[1:], prog_name='bitnet')"
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, cwd=folder, check=False,
        env=os.environ | {"COLUMNS": "100"},
    )  # fmt: skip


@pytest.mark.slow
def test_json_lines_on_stdout_and_nothing_else(tmp_path: Path) -> None:
    done = bitnet(tmp_path, "run", "tiny.toml", "--json")
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(each["event"], each.get("stage")) for each in events] == [
        ("run_started", None), ("stage_started", "storage"), ("stage_done", "storage"), ("stage_started", "report"),
        ("stage_done", "report"), ("run_finished", None),
    ]  # fmt: skip
    assert events[-1]["report"] == str(tmp_path / "runs" / "tiny" / "report.html")
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00", each["time"]) for each in events)
    again = bitnet(tmp_path, "run", "tiny.toml", "--json")
    assert [json.loads(line)["event"] for line in again.stdout.splitlines()][1:3] == ["stage_skipped"] * 2
    log = (tmp_path / "runs" / "tiny" / "logs" / "run.log").read_text()
    assert "storage   running: " in log


def test_what_ends_a_run_before_it_begins_is_an_event(tmp_path: Path) -> None:
    done = bitnet(tmp_path, "run", "tiny.toml", "--json", "--set", "run.nome=3")
    assert done.returncode == 2
    (line,) = done.stdout.splitlines()
    event = json.loads(line)
    assert (event["event"], event["exit_code"], event["what"]) == ("run_failed", 2, "nothing was run")
    assert "run.nome" in event["why"]
    assert event["go_on"].startswith("bitnet run tiny.toml")
    assert "run.nome" in done.stderr


@pytest.mark.slow
def test_quiet_is_quiet(tmp_path: Path) -> None:
    done = bitnet(tmp_path, "run", "tiny.toml", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "runs" / "tiny" / "report.html").is_file()


def test_a_run_has_one_voice(tmp_path: Path) -> None:
    done = bitnet(tmp_path, "run", "tiny.toml", "--quiet", "--json")
    assert done.returncode == 2
    assert "leave one of them out" in done.stderr


def test_what_libraries_print_goes_to_stderr(tmp_path: Path) -> None:
    script = (
        "import os, sys\n"
        "from bitnet_cli.reporter.events import events_on_stdout\n"
        "with events_on_stdout() as events:\n"
        "    print('from Python'); os.write(1, b'from C\\n'); os.system('echo from a child')\n"
        "    events.emit('notice', stage=None, text='ours')\n"
        "print('afterwards')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    first, last = done.stdout.splitlines()
    assert json.loads(first)["text"] == "ours"
    assert last == "afterwards"
    assert sorted(done.stderr.splitlines()) == ["from C", "from Python", "from a child"]


def test_the_document_names_every_event_and_field() -> None:
    if not DOC.is_file():
        pytest.skip("the documents are not beside the packages")
    source = (Path(sys.modules[Reporter.__module__].__file__ or "")).read_text()
    events = set(re.findall(r'"(run_\w+|stage_\w+|progress|notice|warning)"', source))
    text = DOC.read_text()
    assert events >= {"run_started", "stage_started", "stage_skipped", "stage_done", "run_failed", "run_finished"}
    assert {event for event in events if f"| `{event}` |" not in text} == set()
