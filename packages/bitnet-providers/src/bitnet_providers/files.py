"""New files of a raw folder, named so that the folders of several machines can be copied together."""

import secrets
from pathlib import Path
from typing import Any


def new_file(folder: Path, name: str, suffix: str, buffering: int = -1) -> Any:
    """Open a file ``name-NNN-TOKEN.suffix`` to write bytes. Raises OSError.

    NNN counts on, so that names sort in the order in which the files were begun; TOKEN is random, so that no two
    machines give the same name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = len(list(folder.glob(f"{name}-*{suffix}")))
    return (folder / f"{name}-{number:03d}-{secrets.token_hex(4)}{suffix}").open("xb", buffering=buffering)
