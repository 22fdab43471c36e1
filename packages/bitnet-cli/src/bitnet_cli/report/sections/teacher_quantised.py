"""What a user would take instead: the teacher's own files by llama.cpp (`benchmarks.teacher_quantised`)."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from bitnet_cli.report.blocks import Block, Figure, Heading, Table, Text
from bitnet_cli.report.charts.axes import wants_log
from bitnet_cli.report.charts.chart_data import GREY, Line, Lines, drawable
from bitnet_cli.report.number_format import bytes_text, number
from bitnet_cli.report.read_run import RunRecord


def teacher_quantised_blocks(run: RunRecord) -> Iterator[Block]:
    """Nothing where the benchmark has not been run on this run."""
    report = run.teacher_quantised
    others = _rows(report.get("teacher"))
    student = next(iter(_rows([report.get("student")])), None)
    if student is None or not others:
        return
    yield Heading("Beside the teacher's own quantised files")
    yield Text(
        f"Files that llama.cpp {report.get('llama_cpp', '')} made of the teacher, with an importance matrix, and ours: "
        f"perplexity on the {report.get('split', 'held-out')} documents by the same code, against the bytes of the "
        "file that was scored. Left and below is better."
    )
    chart = size_chart(student, others)
    yield Figure("teacher_quantised", "Perplexity against the size of the file.", (chart,))
    yield Table(
        ("file", "bytes", "perplexity", "KL to the teacher, nats per token", "QEI of the student against it"),
        tuple(
            (
                str(row["model"]),
                bytes_text(row["bytes"]),
                number(row["perplexity"]),
                number(row.get("kl")),
                number(row.get("qei_of_student")),
            )
            for row in sorted((*others, student), key=lambda row: row["bytes"], reverse=True)
        ),
    )


def size_chart(student: Mapping[str, Any], others: Iterable[Mapping[str, Any]]) -> Lines:
    """Perplexity of each file against its megabytes."""
    by_size = sorted(others, key=lambda row: float(row["bytes"]))
    log = wants_log(row["perplexity"] for row in (*by_size, student))
    return Lines(
        title="Perplexity and size",
        x_label="MB",
        y_label="perplexity" + (", log scale" if log else ""),
        lines=(
            Line(
                "the teacher, llama.cpp", tuple(map(_place, by_size)), GREY, dots=True,
                names=tuple(str(row["model"]).removeprefix("teacher, ") for row in by_size),
            ),
            Line("our student", (_place(student),), dots=True, joined=False),
        ),
        log_y=log,
    )  # fmt: skip


def _place(row: Mapping[str, Any]) -> tuple[float, float]:
    return row["bytes"] / 1e6, row["perplexity"]


def _rows(found: Any) -> list[dict[str, Any]]:
    """Those with a name, bytes and a perplexity."""
    rows = found if isinstance(found, list) else []
    return [
        row
        for row in rows
        if isinstance(row, dict) and "model" in row and all(drawable(row.get(key)) for key in ("bytes", "perplexity"))
    ]
