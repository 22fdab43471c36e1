"""Errors that a person can fix: shown without a traceback, exit code 2."""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import attrs
import click

EXIT_ERROR = 1
EXIT_USER = 2
EXIT_STOPPED = 130
"""128 + SIGINT, as shells have it."""


@attrs.frozen
class Problem:
    """One thing that is wrong: what and where, and what to do about it."""

    why: str
    fix: str = ""
    """Empty where nothing is known to help."""

    def __str__(self) -> str:
        return f"{self.why}  → {self.fix}" if self.fix else self.why

    def within(self, where: str) -> "Problem":
        """The same, with the place before it: ``export.kinds: ...``."""
        return Problem(f"{where}: {self.why}", self.fix)


def problem_of(error: object) -> Problem:
    """What an error of any of the four packages says, or a plugin's plain text."""
    return Problem(getattr(error, "why", str(error)), getattr(error, "fix", ""))


class UserError(Exception):
    """Something that the user wrote or set is wrong: `why` says what and where, `fix` what to do about it."""

    def __init__(self, why: str, fix: str = "") -> None:
        super().__init__(why, fix)
        self.why = why
        self.fix = fix

    def __str__(self) -> str:
        return str(Problem(self.why, self.fix))

    @property
    def problems(self) -> tuple[Problem, ...]:
        return (Problem(self.why, self.fix),)


class ProblemsError(UserError):
    """Several things are wrong at once. `headline` says what they have in common, such as the manifest's name.

    `why` holds the headline and a line for each problem, `fix` a line for each fix.
    """

    def __init__(self, problems: Sequence[Problem], headline: str = "") -> None:
        self._problems = tuple(problems)
        self.headline = headline
        fixes = dict.fromkeys(problem.fix for problem in self._problems if problem.fix)
        super().__init__(self._lines(problem.why for problem in self._problems), "\n".join(fixes))
        self.args = (self._problems, headline)  # what pickle makes it again from

    def __str__(self) -> str:
        return self._lines(map(str, self._problems))

    @property
    def problems(self) -> tuple[Problem, ...]:
        return self._problems

    def _lines(self, texts: Iterable[str]) -> str:
        return "\n".join((self.headline, *(f"  {text}" for text in texts)) if self.headline else texts)


class RefusedError(ValueError):
    """A value that a setting does not take: what is wrong, and the fix.

    `write` is the value to write instead, as TOML; `fix` is any other advice.
    """

    def __init__(self, why: str, fix: str = "", write: str | None = None) -> None:
        super().__init__(why, fix, write)
        self.why = why
        self.fix = fix
        self.write = write

    def __str__(self) -> str:
        return str(Problem(self.why, self.fix))


@contextmanager
def user_errors(*also: type[Exception]) -> Iterator[None]:
    """Turn a UserError, and what `also` names, into its message and exit code 2; anything else passes."""
    shown: tuple[type[Exception], ...] = (UserError, *also)
    try:
        yield
    except shown as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(EXIT_USER)


@contextmanager
def library_errors() -> Iterator[None]:
    """`user_errors` with those of the libraries, which are imported for it."""
    from bitnet_core.errors import CoreError
    from bitnet_providers.contract import ProviderError

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # before it is imported: it warns of our model's type
    with user_errors(CoreError, ProviderError):
        yield
