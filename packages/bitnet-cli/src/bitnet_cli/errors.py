"""Errors that a person can fix: shown without a traceback, exit code 2."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import click


class UserError(Exception):
    """Something that the user wrote or set is wrong.

    `problems` holds one line each: what, where, and the fix. `headline` says what they have in common, such as the
    manifest's name.
    """

    def __init__(self, problems: str | Sequence[str], headline: str = "") -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        self.headline = headline
        super().__init__(self.problems, headline)

    def __str__(self) -> str:
        if not self.headline:
            return "\n".join(self.problems)
        return "\n".join((self.headline, *(f"  {problem}" for problem in self.problems)))


@contextmanager
def user_errors(*also: type[Exception]) -> Iterator[None]:
    """Turn a UserError, and what `also` names, into its message and exit code 2; anything else passes."""
    told: tuple[type[Exception], ...] = (UserError, *also)
    try:
        yield
    except told as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
