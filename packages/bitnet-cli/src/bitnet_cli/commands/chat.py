"""`bitnet chat`: a conversation on the terminal, or line by line from a pipe."""

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bitnet_cli.commands.shared_options import (
    CKPT,
    Ask,
    ask_of,
    ask_options,
    find_model,
    open_model,
    show,
)
from bitnet_cli.errors import UserError, library_errors

if TYPE_CHECKING:
    from bitnet_core.runtime.contract import Message, Runtime

RESET = "/reset"
HELP = f"{RESET} forgets the conversation, Ctrl-C stops an answer, Ctrl-D ends"
_COMMAND = re.compile(r"/\w+")


@click.command("chat")
@CKPT
@ask_options
def chat_command(checkpoint: Path, **options: Any) -> None:
    """Talk with CKPT: a run folder, a checkpoint, or an export.

    /reset forgets the conversation, Ctrl-C stops an answer, Ctrl-D ends. From a pipe, each line is a turn.

    \b
    Examples:
      bitnet chat runs/quickstart
      bitnet chat runs/quickstart/exports/student-tq2_0.gguf --system "Answer in one sentence."
      printf 'What is tea?\\nAnd coffee?\\n' | bitnet chat runs/quickstart --max-new-tokens 40
    """
    with library_errors():
        ask = ask_of(options)
        model = find_model(checkpoint)
        interactive = sys.stdin.isatty()
        with open_model(model.place, ask.bits, ask.runtime) as runtime:
            if interactive:
                click.echo(f"{model.place}: {runtime.description}\n{HELP}", err=True)
            converse(runtime, ask, lines(interactive), interactive)


def converse(runtime: "Runtime", ask: Ask, typed: Iterator[str], interactive: bool) -> None:
    """Answer each line of `typed`, the whole conversation before it.

    Raises CoreError for a turn that can't be answered; at a terminal it is shown, and the conversation goes on without.
    """
    from bitnet_core.errors import CoreError

    history = ask.opening()
    for line in typed:
        if line == RESET:
            history = ask.opening()
            if interactive:
                click.echo("forgotten", err=True)
        elif _COMMAND.fullmatch(line):
            unknown = UserError(f"{line}: no such command", HELP)
            if not interactive:
                raise unknown
            click.echo(str(unknown), err=True)
        elif line:
            try:
                history = turn(runtime, ask, history, line)
            except CoreError as error:
                if not interactive:
                    raise
                click.echo(f"error: {error}; or start anew with {RESET}", err=True)


def turn(runtime: "Runtime", ask: Ask, history: "list[Message]", line: str) -> "list[Message]":
    """The conversation with this turn; as it was where Ctrl-C stopped the answer."""
    from bitnet_core.runtime.contract import answer

    asked = [*history, {"role": "user", "content": line}]
    try:
        said = answer(runtime, asked, ask.sampling(), show)
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
        click.echo("\n(stopped; this turn is forgotten)", err=True)
        return history
    click.echo()
    return [*asked, {"role": "assistant", "content": said.text}]


def lines(interactive: bool) -> Iterator[str]:
    """What is typed, stripped, until Ctrl-D; or stdin's lines. Raises UserError for what is no text."""
    if interactive:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 -- gives input() its line editing
        while True:
            try:
                yield input("> ").strip()
            except EOFError:
                click.echo()
                return
            except KeyboardInterrupt:  # drops what was typed, as in a shell
                click.echo()
    try:
        for line in sys.stdin:
            yield line.strip()
    except UnicodeDecodeError as error:
        raise UserError(f"stdin is not text ({error.reason} at byte {error.start})", "write it in UTF-8") from None
