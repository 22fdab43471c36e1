"""What a run shows while it works: a bar on a terminal, plain lines elsewhere (Colab, CI, a file)."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bitnet_cli.stage import OnProgress

_LINE_EVERY_S = 10.0
_WIDTH = 9  # of the longest stage name


class Reporter:
    """Tells the user what happens, and keeps the lines in ``logs/run.log``."""

    def __init__(
        self, console: Console, clock: Callable[[], float] = time.monotonic, errors: Console | None = None
    ) -> None:
        self.console = console
        self._errors = errors or console
        self._clock = clock
        self._log: Path | None = None

    def keep_in(self, log: Path) -> None:
        """From now on append every line to this file as well."""
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log

    def say(self, text: str, style: str = "") -> None:
        self._show(self.console, text, style)
        self._note(text)

    def fail(self, text: str) -> None:
        """Tell why the run ends, where errors are told."""
        self._show(self._errors, text, "bold red")
        self._note(text)

    def _show(self, console: Console, text: str, style: str) -> None:
        try:
            console.print(text, style=style or None, markup=False, highlight=False, soft_wrap=True)
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
                    file.write(text + "\n")
            except OSError:  # a full disk is reported by the stage that needs the space
                self._log = None

    def stage_line(self, stage: str, text: str, style: str = "") -> None:
        self.say(f"{stage:<{_WIDTH}} {text}", style)

    @contextmanager
    def stage(self, name: str) -> Iterator[OnProgress]:
        """Give the stage a function to report progress with; a bar appears at its first call."""
        if self.console.is_terminal:
            with _bar(self.console, name) as on_progress:
                yield on_progress
        else:
            yield self._lines(name)

    def _lines(self, name: str) -> OnProgress:
        started = last_time = self._clock()
        last_tenth = 0

        def on_progress(done: int, total: int, note: str) -> None:
            nonlocal last_time, last_tenth
            now = self._clock()
            tenth = 10 * done // total if total > 0 else 0
            # every tenth of the work, or every so many seconds; always the end
            if tenth > last_tenth or now - last_time >= _LINE_EVERY_S:
                last_time, last_tenth = now, tenth
                self.stage_line(name, f"{done}/{total} · {now - started:.0f} s" + (f" · {note}" if note else ""))

        return on_progress


@contextmanager
def _bar(console: Console, name: str) -> Iterator[OnProgress]:
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    task = progress.add_task(f"{name:<{_WIDTH}}", total=None, note="")

    def on_progress(done: int, total: int, note: str) -> None:
        progress.start()  # not before: a stage may have a question first
        progress.update(task, completed=done, total=total or None, note=escape(note))

    try:
        yield on_progress
    finally:
        progress.stop()
