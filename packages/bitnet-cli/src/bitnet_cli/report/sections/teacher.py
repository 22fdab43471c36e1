"""The teacher: what the probe found of it (also for `bitnet probe`), and its own quantised files beside the student."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from bitnet_cli.report.blocks import Block, Bullets, Figure, Heading, Table, Text
from bitnet_cli.report.charts.axes import wants_log
from bitnet_cli.report.charts.chart_data import GREY, Line, Lines, drawable
from bitnet_cli.report.number_format import bytes_text, number
from bitnet_cli.report.read_run import RunRecord

if TYPE_CHECKING:
    from bitnet_providers.probe.verdict import Verdict


def probe_blocks(found: dict[str, Any]) -> Iterator[Block]:
    """The section on ``reports/teacher_probe.json``; nothing where that is not there, or of another version."""
    from bitnet_providers.probe.verdict import from_json

    verdict = from_json(found)
    if verdict is None:
        return
    yield Heading("The teacher, probed", level=3)
    word = "trusted for KD" if verdict.trusted_for_kd else "not trusted for KD"
    yield Text(f"On {verdict.probed[:10]}: {word}.")
    yield Table(("what", "found"), tuple(verdict_rows(verdict)), numeric=False)
    if verdict.reasons or verdict.notes:
        yield Bullets((*verdict.reasons, *verdict.notes))


def verdict_rows(verdict: "Verdict") -> list[tuple[str, str]]:
    """(what, found) in words."""
    scoring: str = verdict.scoring
    if verdict.scoring_error is not None:
        scoring += f" with generation: {verdict.scoring_error:.3g} nats a token apart"
    bytes_words = {"valid": "make the text", "wrong": "do not make the text", "none": "none given"}
    return [
        ("teacher", f"{verdict.kind}: {verdict.model}"),
        ("candidates per position", f"{verdict.max_top_logprobs} of {verdict.declared_top_logprobs} declared"),
        ("token bytes", bytes_words[verdict.token_bytes]),
        ("greatest mass of a position", number(verdict.max_mass)),
        ("positions with candidates", _percent(verdict.with_candidates)),
        ("sampled token among them", _percent(verdict.sampled_among)),
        ("candidates without a value", number(verdict.sentinels)),
        ("candidates twice at a position", number(verdict.duplicates)),
        ("temperature", verdict.temperature_rule),
        ("top-p", "before: any top-p" if verdict.top_p == "before" else f"{verdict.top_p}: collect at top_p 1"),
        ("two equal calls", "–" if verdict.repeat_kl is None else f"KL {verdict.repeat_kl:.2g} nats"),
        ("scoring", scoring),
        ("a request takes", f"{verdict.latency_s:.2f} s"),
        (
            "the probe took",
            f"{verdict.requests} requests, {verdict.prompt_tokens:,} + {verdict.completion_tokens:,} tokens",
        ),
    ]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"


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
