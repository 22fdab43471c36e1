"""Numbers, sizes and records as a report shows them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bitnet_cli.run_folder import Done

_LONGEST = 120


def number(value: Any) -> str:
    """Four significant digits, whole numbers with separators; "–" for what isn't there."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (value == value and abs(value) < 1e15 and value == int(value)):
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def percent(value: Any) -> str:
    """A share as a percentage of three digits."""
    return f"{100 * value:.3g} %" if isinstance(value, int | float) else "–"


def times(value: Any) -> str:
    """A ratio: "4.4×"."""
    return f"{value:.3g}×" if isinstance(value, int | float) else "–"


def bytes_text(value: Any) -> str:
    """Bytes in decimal kilobytes, megabytes or gigabytes."""
    if not isinstance(value, int | float):
        return "–"
    if value < 5e4:
        return f"{value / 1e3:.1f} kB"
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.1f} MB"


def count(value: Any) -> str:
    """A great number in short: "134.5 M", "6.74 B"."""
    if not isinstance(value, int | float):
        return "–"
    for size, letter in ((1e9, "B"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.4g} {letter}"
    return number(value)


def duration(seconds: Any) -> str:
    """Two units at most: "3 min 27 s"."""
    if not isinstance(seconds, int | float):
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.3g} s"
    for size, unit, smaller, name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller} {name}"
    return f"{whole} s"


def interval(ends: Sequence[Any]) -> str:
    return f"{number(ends[0])} to {number(ends[1])}"


def scalar_rows(summary: Mapping[str, Any], prefix: str = "") -> tuple[tuple[str, str], ...]:
    """The figures of a stage's summary, nested ones as ``outer: inner``; lists and long texts are left out."""
    rows: list[tuple[str, str]] = []
    for key, value in summary.items():
        label = prefix + key.replace("_", " ")
        if key in ("headline", "warnings"):
            continue
        if isinstance(value, Mapping):
            rows += scalar_rows(value, prefix=f"{label}: ")
        elif isinstance(value, str) and key.endswith("sha256"):
            rows.append((label, value[:16]))
        elif isinstance(value, int | float) and key.endswith("bytes"):
            rows.append((label.removesuffix(" bytes"), bytes_text(value)))
        elif isinstance(value, str | int | float) and len(str(value)) <= _LONGEST:
            rows.append((label, number(value)))
    return tuple(rows)


def is_grouped(value: Any) -> bool:
    """Whether a summary's entry is a record for each of several groups, such as the splits of the traces."""
    return isinstance(value, Mapping) and len(value) > 1 and all(isinstance(each, Mapping) for each in value.values())


def group_columns(groups: Mapping[str, Mapping[str, Any]]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Header and rows of a table with a column for each group."""
    figures = dict.fromkeys(figure for group in groups.values() for figure in group)
    rows = [(figure.replace("_", " "), *(number(group.get(figure)) for group in groups.values())) for figure in figures]
    return ("figure", *groups), tuple(rows)


def stage_times(finished: Iterable[Done]) -> tuple[tuple[str, ...], ...]:
    return tuple(
        (
            done.stage,
            done.finished[:19].replace("T", " "),
            f"{done.seconds:.1f}",
            first_line(done.summary.get("headline")) or "–",
        )
        for done in finished
    )


def first_line(value: Any) -> str:
    return str(value).splitlines()[0] if value else ""
