"""What the benchmarks scored, student beside teacher. The inputs of the index stand beside the index."""

from collections.abc import Iterator, Mapping
from typing import Any

from bitnet_cli.report.blocks import Block, Bullets, Heading, Table, Text
from bitnet_cli.report.words import number

ROLES = ("student", "teacher")


def benchmark_blocks(report: Mapping[str, Any]) -> Iterator[Block]:
    """From the evaluation's report; nothing where it is of a version without benchmarks, or not there."""
    benchmarks = {name: entry for name, entry in _table(report, "benchmarks").items() if isinstance(entry, dict)}
    if benchmarks:
        yield Heading("Benchmarks")
        rows = tuple(row for name, entry in benchmarks.items() for row in _rows(name, entry))
        yield Table(("benchmark", "score", "student", "teacher", "items", "unit"), rows, numeric=False)
        yield Text(
            "Student and teacher go through the same code. In brackets: 95 % bootstrap intervals over items "
            "(documents, answers, questions)."
        )
        if notes := tuple(note for name, entry in benchmarks.items() for note in _notes(name, entry)):
            yield Bullets(notes)


def _rows(name: str, entry: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for score, figures in _table(entry, "scores").items():
        if not isinstance(figures, dict):
            continue
        items = [number(found.get("items")) for role in ROLES if isinstance(found := figures.get(role), dict)]
        unit = str(figures.get("unit") or "")
        if figures.get("chance") is not None:
            unit = f"{unit}; guessing scores {number(figures['chance'])}".removeprefix("; ")
        yield name, score, *(_figure(figures.get(role)) for role in ROLES), " / ".join(dict.fromkeys(items)), unit


def _figure(found: Any) -> str:
    if not isinstance(found, dict) or found.get("value") is None:
        return "–"
    text, interval = number(found["value"]), found.get("interval_95")
    if not isinstance(interval, list) or len(interval) != 2:
        return text
    return f"{text} ({number(interval[0])} to {number(interval[1])})"


def _notes(name: str, entry: Mapping[str, Any]) -> Iterator[str]:
    """In what each side ran, or why it has no figure."""
    ran = [f"{role} in {where}" for role, where in _table(entry, "ran_in").items() if where]
    if ran:
        yield f"{name}: {'; '.join(ran)}."
    yield from (f"{name}: no figure of the {role}: {reason}" for role, reason in _table(entry, "absent").items())


def _table(report: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = report.get(name)
    return value if isinstance(value, dict) else {}
