"""A bar on a terminal, plain lines elsewhere."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from bitnet_cli.reporter.progress import Reporter


class Clock:
    """Seconds that pass only when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_plain_lines_come_each_tenth_and_each_ten_seconds() -> None:
    stream, clock = io.StringIO(), Clock()
    with Reporter(Console(file=stream, width=200), clock).stage("train") as on_progress:
        for step in range(1, 201):
            on_progress(step, 200, "loss 2.0")
        on_progress(200, 200, "")
        clock.now = 11.0
        on_progress(200, 200, "still at it")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "train     20/200 · 0 s · loss 2.0"
    assert lines[9] == "train     200/200 · 0 s · loss 2.0"
    assert lines[10:] == ["train     200/200 · 11 s · still at it"]


def test_an_unknown_total_does_not_divide_by_zero() -> None:
    stream, clock = io.StringIO(), Clock()
    with Reporter(Console(file=stream), clock).stage("collect") as on_progress:
        on_progress(1, 0, "")
        clock.now = 12.0
        on_progress(2, 0, "")
    assert stream.getvalue() == "collect   2/0 · 12 s\n"


def test_a_terminal_gets_a_bar_that_shows_notes_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    stream = io.StringIO()
    with Reporter(Console(file=stream, width=200, force_terminal=True)).stage("train") as on_progress:
        on_progress(1, 2, "[bold]98 tok/s[/x]")
    assert "train" in stream.getvalue()
    assert "[bold]98 tok/s[/x]" in stream.getvalue()


def test_in_a_narrow_terminal_the_note_is_cut_and_not_the_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook's cell has 80 columns."""
    monkeypatch.delenv("CI", raising=False)
    stream = io.StringIO()
    reporter = Reporter(Console(file=stream, width=80, force_terminal=True, color_system=None))
    reporter.run_started("colab", Path("runs/colab"), ("collect", "train"))
    with reporter.stage("train") as on_progress:
        on_progress(0, 4, "")
        on_progress(3, 4, "loss 33.610  kd 29.976  ce 33.076  A8  1,079 tok/s  12 min left")
    last = [line for line in stream.getvalue().replace("\r", "\n").splitlines() if "loss" in line][-1]
    assert "train     2/2 " in last
    assert " 75% loss 33.610  kd 29.976 " in last
    assert "…" in last
    assert "0:00:0" in last, "the time is there"


def test_lines_are_never_markup(tmp_path: Path) -> None:
    stream = io.StringIO()
    reporter = Reporter(Console(file=stream, width=20))
    reporter.keep_in(tmp_path / "logs" / "run.log")
    text = "[red] [/x] a line that is longer than the console, on purpose"
    reporter.run_line(text)
    assert stream.getvalue() == text + "\n"
    assert (tmp_path / "logs" / "run.log").read_text() == text + "\n"


def test_a_run_ends_with_where_to_look_and_what_to_do_next(tmp_path: Path) -> None:
    folder = tmp_path / "my run"

    def said() -> list[str]:
        stream = io.StringIO()
        Reporter(Console(file=stream, width=500)).results_in(folder)
        return stream.getvalue().splitlines()

    (folder / "data").mkdir(parents=True)
    assert said() == [f"run folder: {folder}"]
    (folder / "data" / "kd_shard_000.parquet").touch()
    (folder / "report.html").touch()
    assert said() == [f"report: {folder / 'report.html'}", f"next: bitnet traces stats '{folder}'"]
    (folder / "checkpoints" / "step_3").mkdir(parents=True)
    (folder / "checkpoints" / "step_3" / "model.safetensors").touch()
    assert said() == [f"report: {folder / 'report.html'}", f"next: bitnet chat '{folder}'"]
