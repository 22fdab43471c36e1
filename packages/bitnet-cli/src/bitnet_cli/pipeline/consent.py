"""Questions that a person answers before money is spent or something is deleted."""

import sys

import click

from bitnet_cli.errors import UserError


def ask(question: str, *, yes: bool, otherwise: str = "") -> None:
    """Return where the answer is yes (`yes`: it was given on the command line). Raises UserError where it is not.

    `otherwise` is what to do instead of adding ``--yes`` where nobody sits at the terminal.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise UserError(f"{question} There is nobody to answer", f"add --yes{otherwise}")
    if not click.confirm(question):
        raise UserError("nothing was done: the answer was no")
