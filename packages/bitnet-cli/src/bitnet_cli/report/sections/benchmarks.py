"""What the benchmarks scored, student beside teacher. The inputs of the index stand beside the index."""

from collections.abc import Iterator, Mapping
from typing import Any

from bitnet_cli.report.blocks import Block, Bullets, Heading, Table, Text
from bitnet_cli.report.charts.chart_data import drawable
from bitnet_cli.report.number_format import interval, number
from bitnet_cli.report.sections.simplest_models import ends

ROLES = ("student", "teacher")


def benchmark_blocks(report: Mapping[str, Any]) -> Iterator[Block]:
    """From the evaluation's report; nothing where it is of a version without benchmarks, or not there."""
    benchmarks = {name: entry for name, entry in _table(report, "benchmarks").items() if isinstance(entry, dict)}
    if benchmarks:
        yield Heading("Benchmarks")
        rows = tuple(score_rows(report))
        yield Table(("benchmark", "score", "student", "teacher", "difference", "items", "unit"), rows, numeric=False)
        yield Text(
            "Student and teacher go through the same code. In brackets: 95 % bootstrap intervals over items "
            "(documents, answers, questions). The difference is the student's score less the teacher's, both on the "
            "same draws of items; an interval that holds 0 is a tie."
        )
        if notes := tuple(note for name, entry in benchmarks.items() for note in _notes(name, entry)):
            yield Bullets(notes)


def score_rows(report: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """(benchmark, score, student, teacher, their difference, items, unit), in words."""
    for name, entry in _table(report, "benchmarks").items():
        if isinstance(entry, dict):
            yield from _rows(name, entry)


def compared_scores(report: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Of each score that both sides have: its name, both values, the paired interval of their difference, and `tie`."""
    for name, entry in _table(report, "benchmarks").items():
        for score, figures in (_table(entry, "scores") if isinstance(entry, dict) else {}).items():
            values = [_value(figures, role) for role in ROLES]
            if None in values:
                continue
            found = ends(figures.get("difference_95"))
            yield {
                "score": f"{name}.{score}",
                **dict(zip(ROLES, values, strict=True)),
                "difference_95": found,
                "tie": found is not None and found[0] <= 0 <= found[1],
            }


def _value(figures: Any, role: str) -> Any:
    side = figures.get(role) if isinstance(figures, dict) else None
    return side.get("value") if isinstance(side, dict) else None


def _difference(figures: Mapping[str, Any]) -> str:
    found = ends(figures.get("difference_95"))
    if found is None:
        return "–"
    return f"tie ({interval(found)})" if found[0] <= 0 <= found[1] else interval(found)


def _rows(name: str, entry: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for score, figures in _table(entry, "scores").items():
        if not isinstance(figures, dict):
            continue
        items = [number(found.get("items")) for role in ROLES if isinstance(found := figures.get(role), dict)]
        unit = str(figures.get("unit") or "")
        if figures.get("chance") is not None:
            unit = f"{unit}; guessing scores {number(figures['chance'])}".removeprefix("; ")
        if _guesses(figures):
            unit += ", a tie with it"
        scored = (_figure(figures.get(role)) for role in ROLES)
        yield name, score, *scored, _difference(figures), " / ".join(dict.fromkeys(items)), unit


def _guesses(figures: Mapping[str, Any]) -> bool:
    """The student's interval holds what guessing scores."""
    found, chance = ends((figures.get("student") or {}).get("interval_95")), figures.get("chance")
    return found is not None and drawable(chance) and found[0] <= chance <= found[1]


def _figure(found: Any) -> str:
    if not isinstance(found, dict) or found.get("value") is None:
        return "–"
    text, around = number(found["value"]), found.get("interval_95")
    return f"{text} ({interval(around)})" if isinstance(around, list) and len(around) == 2 else text


def _notes(name: str, entry: Mapping[str, Any]) -> Iterator[str]:
    """In what each side ran, or why it has no figure."""
    ran = [f"{role} in {where}" for role, where in _table(entry, "ran_in").items() if where]
    if ran:
        yield f"{name}: {'; '.join(ran)}."
    yield from (f"{name}: no figure of the {role}: {reason}" for role, reason in _table(entry, "absent").items())


def _table(report: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = report.get(name)
    return value if isinstance(value, dict) else {}
