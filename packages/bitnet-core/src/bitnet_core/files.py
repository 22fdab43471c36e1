"""Files that appear whole or not at all, and what names their content."""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def by_number(file: Path) -> tuple[list[str | int], str]:
    """For `sorted`: numbers in names count as numbers, so that ``shard_1000`` comes behind ``shard_999``."""
    parts = re.split("([0-9]+)", file.name)
    return [int(part) if at % 2 else part for at, part in enumerate(parts)], file.name


@contextmanager
def atomic_file(file: Path) -> Iterator[Path]:
    """A path beside `file` to write to: it becomes `file` once all of it is on disk, and is gone if anything is raised.

    Raises OSError. One writer at a time.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    try:
        yield partial
        with partial.open("r+b") as handle:
            os.fsync(handle.fileno())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def write_text(file: Path, text: str) -> None:
    with atomic_file(file) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(file: Path, record: Any) -> None:
    write_text(file, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def with_digest(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with ``sha256``, that of everything else in it: a file can't hold its own."""
    return {**record, "sha256": _digest(record)}


def has_its_digest(record: Mapping[str, Any]) -> bool:
    """Whether a record is as `with_digest` made it; True where it has no digest (an earlier version's)."""
    rest = {name: value for name, value in record.items() if name != "sha256"}
    return record.get("sha256", _digest(rest)) == _digest(rest)


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sha256_of(file: Path) -> str:
    """Hex digest of its content. Raises OSError."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
