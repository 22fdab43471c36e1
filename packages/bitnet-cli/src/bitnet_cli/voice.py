"""How `bitnet run` speaks: to people, only of what goes wrong, or to programs."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from rich.console import Console

from bitnet_cli.errors import UserError
from bitnet_cli.events import events_on_stdout
from bitnet_cli.failures import EXIT_USER, split_fix
from bitnet_cli.progress import Reporter


@contextmanager
def open_reporter(go_on: str, *, quiet: bool, as_json: bool) -> Iterator[Reporter]:
    """A reporter for one run. A UserError that ends it before it has begun is an event, too, and then raised.

    `go_on` is the command to be typed again. Raises UserError where both voices are asked for.
    """
    if quiet and as_json:
        raise UserError("--quiet and --json: a run has one voice  → leave one of them out")
    with ExitStack() as stack:
        events = stack.enter_context(events_on_stdout()) if as_json else None
        reporter = Reporter(Console(), errors=Console(stderr=True), quiet=quiet, events=events)
        try:
            yield reporter
        except UserError as error:
            if events is not None:
                why, fix = split_fix(str(error))
                events.emit(
                    "run_failed", stage=None, what="nothing was run", why=why, fix=fix, go_on=go_on, exit_code=EXIT_USER
                )
            raise
