"""What a run shows while it works: a bar on a terminal, plain lines elsewhere (Colab, CI), events to programs."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bitnet_cli import run_folder
from bitnet_cli.errors import UserError
from bitnet_cli.reporter.events import FORMAT, Events, events_on_stdout
from bitnet_cli.reporter.failure_message import Failure, refused
from bitnet_cli.reporter.terminal import open_console
from bitnet_cli.stages.stage import OnProgress
from bitnet_cli.wording.hide_secrets import printable

_LINE_EVERY_S = 10.0


_EVENT_EVERY_S = 1.0


_WIDTH = 9  # of the longest stage name


_WIDE = 110  # columns; below (a notebook has 80) a bar is short, and a note is cut before the step and the times are


class Reporter:
    """Tells the user what happens, and keeps the lines in ``logs/run.log``.

    quiet: only warnings and failures are shown, on the console for errors. With `events` nothing is shown but failures;
    the rest goes to the program that reads them.
    """

    def __init__(
        self,
        console: Console,
        clock: Callable[[], float] = time.monotonic,
        errors: Console | None = None,
        *,
        quiet: bool = False,
        events: Events | None = None,
    ) -> None:
        self.console = console
        self._errors = errors or console
        self._clock = clock
        self._log: Path | None = None
        self._quiet = quiet
        self._events = events
        self._stages: tuple[str, ...] = ()
        self.failure: Failure | None = None
        """Why the run ended, where it failed."""

    def keep_in(self, log: Path) -> None:
        """From now on append every line to this file as well."""
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log

    # What happens in a run

    def run_started(self, name: str, folder: Path, stages: Sequence[str]) -> None:
        self._stages = tuple(stages)
        self._emit("run_started", format=FORMAT, run=name, folder=str(folder), stages=list(stages))
        self._line(f"BitNet KDE · run {name} · {folder}", "bold")

    def stage_started(self, stage: str, word: str, why: str) -> None:
        """`word`: running, again, or resuming."""
        self._emit("stage_started", stage=stage, why=why, resumes=word == "resuming")
        self._line(self._of(stage, f"{word}: {why}"), "cyan")

    def stage_skipped(self, stage: str, why: str, *, warns: bool = False) -> None:
        """`warns`: it was not skipped because it is done."""
        self._emit("stage_skipped", stage=stage, why=why, is_done=not warns)
        self._line(self._of(stage, why), "yellow" if warns else "dim")

    def stage_done(self, stage: str, seconds: float, summary: Mapping[str, Any]) -> None:
        """With the stage's own one-line result, and its warnings, where it gives them."""
        self._emit("stage_done", stage=stage, seconds=round(seconds, 3), summary=dict(summary))
        headline = summary.get("headline")
        self._line(self._of(stage, f"done in {seconds:.1f} s" + (f" · {headline}" if headline else "")), "green")
        for warning in summary.get("warnings") or ():
            self.stage_line(stage, str(warning), "yellow")

    def results_in(self, folder: Path) -> None:
        """Where to look, and what to do with what the run has made."""
        report = folder / run_folder.REPORT_HTML
        self._line(f"report: {report}" if report.is_file() else f"run folder: {folder}", "bold")
        if (command := run_folder.next_step(folder)) is not None:
            self._line(f"next: {command}", "bold")

    def run_finished(self, folder: Path, seconds: float) -> None:
        """Everything is done, and durable."""
        report = folder / run_folder.REPORT_HTML
        found = str(report) if report.is_file() else None
        self._emit("run_finished", folder=str(folder), report=found, seconds=round(seconds, 3), exit_code=0)

    def run_failed(self, failure: Failure, stage: str | None = None) -> None:
        """Show why the run ends; it is kept as `failure`."""
        self.failure = failure
        self._emit("run_failed", stage=stage, **_fields(failure))
        self._show(self._errors, failure.message, "bold red")
        self._note(failure.message)

    def run_line(self, text: str, style: str = "") -> None:
        """A line of the run as a whole; in yellow it is a warning."""
        self._emit("warning" if style == "yellow" else "notice", stage=None, text=text)
        self._line(text, style)

    def stage_line(self, stage: str, text: str, style: str = "") -> None:
        self._emit("warning" if style == "yellow" else "notice", stage=stage, text=text)
        self._line(self._of(stage, text), style)

    @contextmanager
    def stage(self, name: str) -> Iterator[OnProgress]:
        """Give the stage a function to report progress with; a bar appears at its first call."""
        if self._events is not None:
            yield _both(self._event_progress(name), self._lines(name))
        elif not self._quiet and is_live(self.console, os.environ):
            with _bar(self.console, self._place(name)) as on_progress:
                yield on_progress
        else:
            yield self._lines(name)

    # How it is shown

    def _of(self, stage: str, text: str) -> str:
        return f"{stage:<{_WIDTH}} {text}"

    def _place(self, stage: str) -> str:
        """``train     5/8``: where the run is among its stages."""
        if stage not in self._stages:
            return f"{stage:<{_WIDTH}}"
        return f"{stage:<{_WIDTH}} {self._stages.index(stage) + 1}/{len(self._stages)}"

    def _emit(self, event: str, **fields: Any) -> None:
        if self._events is not None:
            self._events.emit(event, **fields)

    def _line(self, text: str, style: str = "") -> None:
        if self._events is None and not self._quiet:
            self._show(self.console, text, style)
        elif self._quiet and style == "yellow":
            self._show(self._errors, text, style)
        self._note(text)

    def _show(self, console: Console, text: str, style: str) -> None:
        try:
            console.print(printable(text), style=style or None, markup=False, highlight=False, soft_wrap=True)
        except (OSError, SystemExit) as error:  # rich leaves a broken pipe with SystemExit
            self._go_on_without(console, error)

    def _go_on_without(self, console: Console, error: BaseException) -> None:
        """The output is full or nobody reads it any more: that is no reason to end a training."""
        nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  it lasts as long as the process
        with suppress(OSError, ValueError):
            # what is still buffered must not fail again when the process ends
            os.dup2(nowhere.fileno(), console.file.fileno())
        why = "nobody reads it" if isinstance(error, SystemExit | BrokenPipeError) else str(error)
        console.file = nowhere
        if console is not self._errors:
            where = f"; what happens is in {self._log}" if self._log else ""
            self._show(self._errors, f"the output can't be written ({why}): the run goes on{where}", "yellow")
        self._note(f"the output can't be written ({why}): the run goes on")

    def _note(self, text: str) -> None:
        if self._log is not None:
            try:
                with self._log.open("a", encoding="utf-8") as file:
                    file.write(printable(text) + "\n")
            except OSError:  # a full disk is reported by the stage that needs the space
                self._log = None

    def _lines(self, name: str) -> OnProgress:
        pace = Pace(self._clock)
        last_time, last_tenth = self._clock(), 0

        def on_progress(done: int, total: int, note: str) -> None:
            nonlocal last_time, last_tenth
            now = self._clock()
            seconds, left = pace.at(done, total)
            tenth = 10 * done // total if total > 0 else 0
            # every tenth of the work, or every so many seconds; always the end
            if tenth > last_tenth or now - last_time >= _LINE_EVERY_S:
                last_time, last_tenth = now, tenth
                # some stages know better what is left: their own words count
                rest = f"{left:.0f} s left" if left and " left" not in note else ""
                words = (f"{done}/{total}", f"{seconds:.0f} s", rest, note)
                self._line(self._of(name, " · ".join(filter(None, words))))

        return on_progress

    def _event_progress(self, name: str) -> OnProgress:
        pace = Pace(self._clock)
        last_time = float("-inf")

        def on_progress(done: int, total: int, note: str) -> None:
            nonlocal last_time
            now = self._clock()
            seconds, left = pace.at(done, total)
            if now - last_time >= _EVENT_EVERY_S or done == total:
                last_time = now
                rest = None if left is None else round(left, 1)
                known = total if total > 0 else None
                self._emit(
                    "progress",
                    stage=name,
                    done=done,
                    total=known,
                    seconds=round(seconds, 1),
                    seconds_left=rest,
                    note=note,
                )

        return on_progress


class Pace:
    """How long some work has taken, and how long what is left of it will at the same pace."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._started = clock()
        self._first: tuple[int, float] | None = None

    def at(self, done: int, total: int) -> tuple[float, float | None]:
        """(seconds so far, seconds left). None: not known, or nothing is left.

        What was done before the first call, in an earlier run, counts for nothing.
        """
        now = self._clock()
        if self._first is None:
            self._first = (done, now)
        before, since = self._first
        if done <= before or done >= total or now <= since:
            return now - self._started, None
        return now - self._started, (total - done) * (now - since) / (done - before)


def is_live(console: Console, environment: Mapping[str, str]) -> bool:
    """Whether a bar can move there: on a terminal that a person looks at, not in the log of a CI that has colours."""
    return console.is_terminal and not console.is_dumb_terminal and environment.get("CI", "") in ("", "0", "false")


def _both(one: OnProgress, other: OnProgress) -> OnProgress:
    def on_progress(done: int, total: int, note: str) -> None:
        one(done, total, note)
        other(done, total, note)

    return on_progress


@contextmanager
def _bar(console: Console, name: str) -> Iterator[OnProgress]:
    bar_width = 30 if console.width >= _WIDE else 8
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=bar_width),
        TaskProgressColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    task = progress.add_task(name, total=None, note="")

    def on_progress(done: int, total: int, note: str) -> None:
        progress.start()  # not before: a stage may have a question first
        room = max(0, console.width - len(name) - bar_width - len("100% 00:00:00 00:00:00") - 3)
        short = note if len(note) <= room else note[: max(0, room - 1)] + "…"
        progress.update(task, completed=done, total=total or None, note=escape(short))

    try:
        yield on_progress
    finally:
        progress.stop()


def _fields(failure: Failure) -> dict[str, Any]:
    """Of the event ``run_failed``."""
    return attrs.asdict(failure, filter=lambda field, _: field.name != "message")


@contextmanager
def open_reporter(go_on: str, *, quiet: bool, as_json: bool) -> Iterator[Reporter]:
    """A reporter for one run. A UserError that ends it before it has begun is an event, too, and then raised.

    `go_on` is the command to be typed again. Raises UserError where `quiet` and `as_json` are both asked for.
    """
    if quiet and as_json:
        raise UserError("--quiet and --json: a run is shown in one way only", "leave one of them out")
    with ExitStack() as stack:
        events = stack.enter_context(events_on_stdout()) if as_json else None
        reporter = Reporter(open_console(), errors=open_console(stderr=True), quiet=quiet, events=events)
        try:
            yield reporter
        except UserError as error:
            if events is not None:
                events.emit("run_failed", stage=None, **_fields(refused(error, go_on=go_on)))
            raise
