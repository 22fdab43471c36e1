"""``logs/metrics.jsonl``: one JSON object a logged step."""

import json
from pathlib import Path
from typing import Any

from bitnet_core.files import write_text


def append_row(file: Path, row: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(row) + "\n")


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows in order; what is no row (a line cut by a kill, junk) is left out. Empty without the file."""
    if not file.exists():
        return []
    rows = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def keep_rows_up_to(file: Path, step: int) -> None:
    """Drop the metrics that a killed run wrote after its last checkpoint: they will be written again."""
    if file.exists():
        write_text(file, "".join(json.dumps(row) + "\n" for row in read_rows(file) if row["step"] <= step))
