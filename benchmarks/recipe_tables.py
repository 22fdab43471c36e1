"""The tables of docs/recipes.md, from the results of `benchmarks.recipes`.

uv run python -m benchmarks.recipe_tables benchmarks/results/recipes.json
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

COLUMNS = {"kl_a8": "KL at A8", "validation_kl_a8": "on validation documents", "kl_a4": "at A4"}


def tables(result: Mapping[str, Any]) -> dict[str, str]:
    """Markdown by group, best first, `base` in each. KL in nats a token: the mean over the seeds and their range."""
    groups = {name: group for name, group in result["recipes"].items() if name != "base"}
    return {name: _table(result["recipes"]["base"] | group) for name, group in groups.items()}


def _table(rows: Mapping[str, Any]) -> str:
    ordered = sorted(rows.items(), key=lambda row: row[1]["kl_a8"]["mean"])
    columns = {figure: title for figure, title in COLUMNS.items() if any(figure in row for row in rows.values())}
    head = f"| recipe | {' | '.join(columns.values())} |\n|---|{'---|' * len(columns)}\n"
    lines = (
        f"| `{name}` | {' | '.join(_cell(row[each]) if each in row else '' for each in columns)} |\n"
        for name, row in ordered
    )
    return head + "".join(lines)


def _cell(figures: Mapping[str, Any]) -> str:
    least, most = figures["range"]
    return f"{figures['mean']:.2f} ({least:.2f} to {most:.2f})"


def main() -> None:
    for name, table in tables(json.loads(Path(sys.argv[1]).read_text())).items():
        print(f"{name}\n\n{table}")


if __name__ == "__main__":
    main()
