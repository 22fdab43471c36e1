"""What a chart shows, as plain records. `svg` draws them, for the page and as pictures for the Markdown report."""

import math
from collections.abc import Sequence
from typing import TypeGuard

import attrs

Point = tuple[float, float]

GREY = -1
"""The colour of what a chart compares with: references, limits."""


@attrs.frozen
class Line:
    label: str
    points: tuple[Point, ...]
    colour: int = 0
    """Which of the palette's colours, in order; `GREY` for a reference."""
    dashed: bool = False
    dots: bool = False
    names: tuple[str, ...] = ()
    """Written beside the points."""
    joined: bool = True
    """A line goes through the points."""


@attrs.frozen
class Mark:
    """Something that happened at `x`: a vertical line with a label."""

    x: float
    label: str


@attrs.frozen(kw_only=True)
class Lines:
    """Curves over a shared x axis."""

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    marks: tuple[Mark, ...] = ()
    log_y: bool = False
    log_x: bool = False
    unit: bool = False
    """Both axes go from 0 to 1."""


@attrs.frozen
class Dot:
    label: str
    value: float
    low: float | None = None
    high: float | None = None
    strong: bool = False
    """What the chart is about, among what it is compared with."""


@attrs.frozen(kw_only=True)
class Dots:
    """A value a row, with its interval where there is one, on one axis."""

    title: str
    x_label: str
    dots: tuple[Dot, ...]
    log_x: bool = False


@attrs.frozen(kw_only=True)
class Bars:
    """A histogram: `edges` has one label more than `values`; an empty one is not written."""

    title: str
    x_label: str
    y_label: str
    edges: tuple[str, ...]
    values: tuple[float, ...]
    """Shares, 0..1."""


@attrs.frozen(kw_only=True)
class Cells:
    """A matrix of cells, each with a share 0..1 (a shade), or several that make up 1 (a small bar)."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    values: tuple[tuple[tuple[float, ...] | None, ...], ...]
    """[row][column]; None: nothing is there."""
    parts: tuple[str, ...] = ()
    """What the several shares are."""


Chart = Lines | Dots | Bars | Cells


def drawable(value: object) -> TypeGuard[float]:
    """Whether it is a number that has a place on an axis."""
    return isinstance(value, int | float) and abs(value) < 1e100  # beyond, an axis has no ticks; NaN is no less


def thin(points: Sequence[Point], most: int = 600) -> tuple[Point, ...]:
    """At most about `most` of the points, in order: of each stretch the lowest and the highest, so that peaks stay."""
    finite = [point for point in points if drawable(point[1])]
    if len(finite) <= most:
        return tuple(finite)
    size = math.ceil(2 * len(finite) / most)
    kept: list[Point] = [finite[0]]
    for start in range(1, len(finite) - 1, size):
        stretch = finite[start : min(start + size, len(finite) - 1)]
        kept += sorted({min(stretch, key=_height), max(stretch, key=_height)})
    return (*kept, finite[-1])


def _height(point: Point) -> float:
    return point[1]


@attrs.frozen
class LegendEntry:
    label: str
    line: Line | None = None
    part: int | None = None
    """Which of the parts of `Cells`, instead of a line."""


def legend(chart: Chart) -> tuple[LegendEntry, ...]:
    """None where the title says it all."""
    match chart:
        case Lines(lines=lines) if len(lines) > 1:
            return tuple(LegendEntry(each.label, line=each) for each in lines)
        case Cells(parts=parts):
            return tuple(LegendEntry(part, part=place) for place, part in enumerate(parts))
    return ()


def unit_of(chart: Chart) -> str:
    """What stands beside the title instead of along the y axis."""
    return chart.y_label if isinstance(chart, Lines | Bars) else ""
