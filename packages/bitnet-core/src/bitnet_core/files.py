"""Files that appear whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any


def write_text(file: Path, text: str) -> None:
    """Write to a temporary name beside `file`, then rename."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    with partial.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    partial.replace(file)


def write_json(file: Path, record: Any) -> None:
    write_text(file, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
