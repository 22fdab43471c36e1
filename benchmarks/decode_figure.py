"""The roofline of `benchmarks.decode`: tokens a second against the bytes that a token must read."""

from pathlib import Path
from typing import Any

from bitnet_cli.report.charts.chart_data import GREY, Line, Lines
from bitnet_cli.report.charts.svg import picture

PROGRAMS = ("packed", "ik_llama.cpp", "bitnet.cpp", "llama.cpp", "torch")


def draw(result: dict[str, Any], file: Path) -> None:
    """One panel for each number of threads; the line is the memory's limit, and a colour is a program: a point of it is
    one type of weights of one model."""
    table = result["table"]
    counts = sorted({row["threads"] for row in table})
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(picture([_panel([row for row in table if row["threads"] == count]) for count in counts]))


def _panel(rows: list[dict[str, Any]]) -> Lines:
    bandwidth, threads = max(row["bandwidth"] for row in rows), rows[0]["threads"]
    sizes = [row["bytes_per_token"] for row in rows]
    limit = tuple((x / 1e9, bandwidth / x) for x in (0.8 * min(sizes), 1.25 * max(sizes)))
    lines = [Line(f"{bandwidth / 1e9:.0f} GB/s", limit, GREY, dashed=True)]
    for colour, program in enumerate(PROGRAMS):
        points = tuple((row["bytes_per_token"] / 1e9, row["decode"]) for row in rows if _program(row) == program)
        if points:
            lines.append(Line(program, points, colour, dots=True, joined=False))
    return Lines(
        title=f"{threads} thread{'s' * (threads > 1)}",
        x_label="GB read for a token",
        y_label="tokens/s, decoding",
        lines=tuple(lines),
        log_x=True,
        log_y=True,
    )


def _program(row: dict[str, Any]) -> str:
    named = row["runtime"].split()[0]
    return named if named in PROGRAMS else "llama.cpp"
