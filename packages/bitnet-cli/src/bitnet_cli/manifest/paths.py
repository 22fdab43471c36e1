"""Paths in a manifest: ``${VAR}`` is expanded, relative ones start at the file that wrote them."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitnet_cli.errors import RefusedError

_VARIABLE = re.compile(r"\$\{([^}]*)\}")
_FORMS = "write ${NAME} or ${NAME:-default}"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Written(str):
    """A string of a manifest that remembers the folder of the file that it was written in."""

    folder: Path

    def __new__(cls, text: str, folder: Path) -> "Written":
        written = super().__new__(cls, text)
        written.folder = folder
        return written


def remember_folder(value: Any, folder: Path) -> Any:
    """The same TOML value with every string (not the keys) marked as written in `folder`."""
    match value:
        case str():
            return Written(value, folder)
        case list():
            return [remember_folder(item, folder) for item in value]
        case dict():
            return {name: remember_folder(item, folder) for name, item in value.items()}
    return value


def absolute(text: str, environment: Mapping[str, str]) -> Path:
    """Expand ``${VAR}``, ``${VAR:-default}`` and ``~``, then make the path absolute (without following links).

    A relative path starts at the folder of the manifest that wrote it (at the working folder for `--set`); one that
    begins with a variable's value starts at the working folder, because that is where environments are written.
    Raises RefusedError.
    """
    folder = text.folder if isinstance(text, Written) else Path.cwd()
    from_environment = False

    def value_of(match: re.Match[str]) -> str:
        nonlocal from_environment
        name, separator, default = match.group(1).partition(":-")
        if not _NAME.fullmatch(name):
            raise RefusedError("${...} does not hold a variable's name", _FORMS)
        if environment.get(name):
            from_environment = from_environment or match.start() == 0
            return environment[name]
        if separator:
            return default
        state = "is empty" if name in environment else "is not set"
        raise RefusedError(
            f"the environment variable {name} {state}",
            f"export {name}=..., or put {name}=... in .env, or write ${{{name}:-a default}}",
        )

    expanded = _VARIABLE.sub(value_of, text)
    if "${" in expanded:
        raise RefusedError(
            "${ is not closed, or a variable's value holds another ${", "write ${NAME} or ${NAME:-default}"
        )
    if not expanded.strip():
        raise RefusedError("the path is empty", "name a file or folder")
    if "\0" in expanded:
        raise RefusedError("the path holds a NUL character", "remove it")
    start = Path.cwd() if from_environment else folder
    return Path(os.path.abspath(start / os.path.expanduser(expanded)))
