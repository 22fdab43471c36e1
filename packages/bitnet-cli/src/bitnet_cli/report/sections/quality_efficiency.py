"""The quality-efficiency index, its inputs and where they come from."""

from collections.abc import Iterator
from typing import Any

from bitnet_cli.report.blocks import Block, Bullets, Heading, Table, Text
from bitnet_cli.report.number_format import bytes_text, first_line, number
from bitnet_cli.report.read_run import RunRecord
from bitnet_cli.report.sections.simplest_models import where
from bitnet_cli.report.sections.verdict import no_evaluation


def efficiency_blocks(run: RunRecord) -> Iterator[Block]:
    yield Heading("Quality-efficiency index")
    report = run.evaluation
    if not report:
        yield Text(f"QEI: {no_evaluation(run)}.")
        return
    teacher = run.baseline.get("teacher") or {}
    baseline = f"baseline: {teacher.get('model', 'the teacher')}" if run.baseline else "no baseline has run"
    if teacher.get("dtype"):
        baseline += f", {teacher['dtype']} on {teacher.get('device', '?')}"
    yield Table(
        ("input", "student", "teacher", "where it comes from"),
        (
            (
                "quality" if _source(report, "student_quality") else "quality: 1 / perplexity",
                _quality(report, "student", "perplexity"),
                _quality(report, "teacher", "teacher_perplexity"),
                _sources(report, "quality") or f"the same {where(run)} tokens",
            ),
            (
                "memory of the weights",
                bytes_text(report.get("memory_bytes")),
                bytes_text(report.get("teacher_memory_bytes")),
                f"student: {_source(report, 'student_memory_bytes') or 'packed size, computed'}; teacher: {baseline}",
            ),
            (
                "decode speed, tok/s",
                number(report.get("tokens_per_second")),
                number(report.get("teacher_tokens_per_second")),
                f"student: {report.get('runtime', 'this run')}; teacher: {baseline}{_clock(run.baseline)}",
            ),
        ),
        numeric=False,
    )
    yield Table(
        ("index", "value", "formula"),
        (
            (
                "QEI",
                number(report.get("qei")),
                "(student quality / teacher quality) / (student memory / teacher memory)",
            ),
            ("QEI_speed", number(report.get("qei_speed")), "QEI × student speed / teacher speed"),
        ),
        numeric=False,
    )
    if report.get("qei") is None:
        yield Text("An index is absent where one of its inputs was not measured.")
        missing = report.get("qei_missing") or {}
        if missing:
            yield Bullets(tuple(f"{name.replace('_', ' ')}: {reason}" for name, reason in missing.items()))
    if report.get("dense_memory_bytes"):
        dense = bytes_text(report["dense_memory_bytes"])
        yield Text(f"Unpacked, as trained (numel × element size), the student takes {dense}.")


def _clock(baseline: dict[str, Any]) -> str:
    """By whose clock the teacher was timed, with the spread over its answers."""
    interval = baseline.get("tokens_per_second_interval_95")
    spread = ""
    if isinstance(interval, list) and len(interval) == 2:
        spread = f"; 95 %: {number(interval[0])} to {number(interval[1])}"
    return f"; timed by: {first_line(baseline['clock_note'])}{spread}" if baseline.get("clock_note") else ""


def _source(report: dict[str, Any], name: str) -> str:
    """Where an input of the index comes from, as the evaluation recorded it."""
    entry = (report.get("qei_inputs") or {}).get(name)
    return str(entry.get("source", "")) if isinstance(entry, dict) else ""


def _sources(report: dict[str, Any], name: str) -> str:
    """The one source of both sides, or both."""
    student, teacher = (_source(report, f"{owner}_{name}") for owner in ("student", "teacher"))
    return student if student == teacher else f"student: {student}; teacher: {teacher}"


def _quality(report: dict[str, Any], owner: str, perplexity: str) -> str:
    """As the evaluation used it; of a record without its inputs, 1 / perplexity."""
    entry = (report.get("qei_inputs") or {}).get(f"{owner}_quality")
    if isinstance(entry, dict):
        return number(entry.get("value"))
    return number(1 / report[perplexity]) if report.get(perplexity) else "–"
