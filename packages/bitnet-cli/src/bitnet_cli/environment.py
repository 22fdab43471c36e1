"""The machine, and environment variables: `.env`, SKIP_EXTERNAL, secrets by reference. No settings."""

import errno
import io
import os
import platform
import stat
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
from dotenv import dotenv_values
from dotenv.parser import parse_stream

from bitnet_cli.errors import Problem, ProblemsError, UserError

Command = TypeVar("Command", bound=Callable[..., Any])

DEFAULT_FILE = Path(".env")
_YES = ("1", "true", "yes", "on")
_NO = ("", "0", "false", "no", "off")


def env_file_option(command: Command) -> Command:
    """The ``--env-file`` option, as `env_file`: Path | None."""
    return click.option(
        "--env-file",
        type=click.Path(path_type=Path),
        default=None,
        metavar="FILE",
        help="Read variables from FILE instead of .env; those already set are kept.",
    )(command)


def load_environment(env_file: Path | None = None, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The process's own variables over those of `env_file` (default: ``.env`` in the working folder, if there is one).

    A variable that is already set wins, as in docker and dotenv. Changes nothing; see `export`. Raises UserError where
    the file is missing, not UTF-8, or has a line that is no assignment (the line itself is never shown).
    """
    own = dict(os.environ if environ is None else environ)
    if env_file is None:
        return {**read_env_file(DEFAULT_FILE), **own} if DEFAULT_FILE.is_file() else own
    return {**read_env_file(env_file), **own}


def read_env_file(path: Path) -> dict[str, str]:
    """The assignments of one file. Raises UserError."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file", "write it (.env.example shows how), or drop --env-file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start})", "save the file in UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}", "make it readable, or name another file") from None
    problems = [
        Problem(
            f"{path}:{binding.original.line}: not an assignment (not shown: it may be a secret)", "write NAME=value"
        )
        for binding in parse_stream(io.StringIO(text))
        if binding.error
    ]
    problems += [Problem(f"{path}: holds a NUL character", "remove it")] if "\0" in text else []
    if problems:
        raise ProblemsError(problems)
    values = dotenv_values(stream=io.StringIO(text))
    return {name: value for name, value in values.items() if value is not None}


def export(environment: Mapping[str, str]) -> None:
    """Put into the process's environment what is not there yet, for the SDKs that read it."""
    for name, value in environment.items():
        os.environ.setdefault(name, value)


def refuse_odd_files() -> None:
    """From now on Python opens no named pipe and no endless device: each is an OSError, where it was a wait for ever.

    Whatever a path names in a manifest, a run or a model's folder is read by many hands, libraries' among them; this is
    the one place that all of them come through. An open descriptor of our own (``/dev/fd/63``, as a shell's ``<(...)``
    gives it) stays what it is.
    """
    if not _watched:
        _watched.append(True)
        sys.addaudithook(_check_opened)


_watched: list[bool] = []
_OWN = ("/dev/fd/", "/dev/std", "/proc/self/fd/")
_ENDLESS = ("/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


def _check_opened(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "open" or not isinstance(arguments[0], str) or arguments[0].startswith(_OWN):
        return
    try:
        found = os.stat(arguments[0])
    except (OSError, ValueError):
        return
    if stat.S_ISFIFO(found.st_mode) or stat.S_ISSOCK(found.st_mode):
        raise OSError(errno.EINVAL, "a pipe or socket, not a file", arguments[0])
    if arguments[2] & os.O_WRONLY:  # of those that are only written to, none hangs or fills the memory
        return
    if stat.S_ISCHR(found.st_mode) and os.path.realpath(arguments[0]) in _ENDLESS:
        raise OSError(errno.EINVAL, "a device, not a file", arguments[0])


def cpu_name() -> str:
    """The processor's model where the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def skip_external(environment: Mapping[str, str]) -> bool:
    """Whether ``SKIP_EXTERNAL`` bars paid and remote calls. Raises UserError for a value that says neither."""
    value = environment.get("SKIP_EXTERNAL", "").strip().lower()
    if value in _YES:
        return True
    if value in _NO:
        return False
    raise UserError("SKIP_EXTERNAL: expected 1 or 0", "write SKIP_EXTERNAL=1 to bar paid and remote calls, or unset it")


def secret(environment: Mapping[str, str], name: str, asked_by: str) -> str:
    """The value of a variable that a manifest names. `asked_by` is the setting, e.g. ``teacher.api_key_env``.

    Raises UserError where it isn't set; the message never holds a value.
    """
    value = environment.get(name, "").strip()
    if not value:
        raise UserError(
            f"{asked_by}: the environment variable {name} is not set", f"export {name}=..., or put it in .env"
        )
    return value
