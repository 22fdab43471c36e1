"""The manifests that come with the package, so that nobody needs a clone: ``starter/``, as `bitnet init` writes it.

In the repository those files are links to ``manifests/``; a wheel holds their contents.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tomli

from bitnet_cli import run_folder
from bitnet_cli.errors import UserError
from bitnet_cli.manifest.suggest import did_you_mean

STARTER = Path(__file__).with_name("starter")
MANIFESTS = STARTER / "manifests"


def names() -> list[str]:
    """The names of the shipped manifests, without ``.toml``."""
    return sorted(path.stem for path in MANIFESTS.glob("*.toml"))


def summary(name: str) -> str:
    """What a manifest says of itself in the first line."""
    first = (MANIFESTS / f"{name}.toml").read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip()


def everything() -> dict[str, bytes]:
    """Path within ``starter/`` → content."""
    files = (path for path in STARTER.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(STARTER).as_posix(): path.read_bytes() for path in sorted(files)}


def with_needs(name: str) -> dict[str, bytes]:
    """The manifest `name`, those that it extends, the data files that they name, their schema: path → content.

    Raises UserError where there is no such manifest.
    """
    if name not in names():
        raise UserError(f'there is no manifest "{name}"; {did_you_mean(name, names(), "manifests")}')
    found: dict[str, bytes] = {}
    waiting = [f"{name}.toml"]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found[path] = (MANIFESTS / path).read_bytes()
        if path.endswith(".toml"):
            text = found[path].decode()
            needs = [*_texts(tomli.loads(text)), *re.findall(r"^#:schema (\S+)$", text, re.MULTILINE)]
            waiting += [need for need in needs if (MANIFESTS / need).is_file()]
    return found


def write(files: Mapping[str, bytes], folder: Path, *, replace: bool) -> list[str]:
    """Write `files` below `folder`; returns the paths written. Files that are there with the same content are left.

    Raises UserError, before anything is written, where one is there with another content and `replace` is False.
    """
    news = [path for path, content in files.items() if _content(folder / path) != content]
    changed = [str(folder / path) for path in news if (folder / path).exists()]
    if changed and not replace:
        raise UserError(
            [f"{path} is there already, with another content" for path in changed]
            + ["→ name another folder, or replace with --force; nothing was written"]
        )
    try:
        for path in news:
            run_folder.write_bytes(folder / path, files[path])
    except OSError as error:
        raise UserError(f"{folder} can't be written: {error.strerror}  → name another folder") from error
    return news


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _texts(value: Any) -> Iterator[str]:
    """Every string in a TOML value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        items: Iterable[Any] = value.values() if isinstance(value, dict) else value
        for item in items:
            yield from _texts(item)
