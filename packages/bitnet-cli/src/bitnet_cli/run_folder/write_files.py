"""How files get into a run folder: written under a temporary name, then renamed."""

import json
import os
import secrets
from pathlib import Path
from typing import Any

from bitnet_cli.wording.hide_secrets import plain_json


def write_text(path: Path, text: str) -> None:
    """Write `text` (UTF-8) so that a reader sees the old file or the whole new one, also after a power cut."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    write_text(path, plain_json(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """The file's value; None where it isn't there or is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
