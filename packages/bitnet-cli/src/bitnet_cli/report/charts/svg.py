"""Charts as SVG: crisp at any size, in the colours of what they stand in, without a library."""

import json
import re
from collections.abc import Iterable, Sequence
from functools import cache
from html import escape
from pathlib import Path

import attrs

from bitnet_cli.report import blocks
from bitnet_cli.report.charts.axes import Scale, fit, tick_text
from bitnet_cli.report.charts.chart_data import (
    GREY,
    Bars,
    Cells,
    Chart,
    Dots,
    LegendEntry,
    Line,
    Lines,
    legend,
    unit_of,
)
from bitnet_cli.report.number_format import number

PALETTE = 6
"""How many colours the style has (c0 to c5); further series use them again, dashed."""


def colour(number: int) -> str:
    return "cg" if number == GREY else f"c{number % PALETTE}"


@attrs.frozen(kw_only=True)
class Drawing:
    """A chart's marks, in a box of `width` × `height` units."""

    width: float
    height: float
    label: str
    """What is drawn, for those who can't see it."""
    body: str
    hover: str = ""
    """JSON: what the page's script shows under the pointer."""

    def inline(self) -> str:
        """As an element of a page, which gives it its size."""
        data = f' data-hover="{escape(self.hover)}"' if self.hover else ""
        return f'<svg {self._box()} role="img" aria-label="{escape(self.label)}"{data}>{self.body}</svg>'

    def placed(self, x: float, y: float) -> str:
        """As a part of a picture, at its own size."""
        size = f'width="{place(self.width)}" height="{place(self.height)}"'
        return f'<svg x="{place(x)}" y="{place(y)}" {size} {self._box()} overflow="visible">{self.body}</svg>'

    def _box(self) -> str:
        return f'viewBox="0 0 {place(self.width)} {place(self.height)}"'


def svg(width: float, height: float, label: str, parts: list[str], hover: str = "") -> Drawing:
    return Drawing(width=width, height=height, label=label, body="".join(parts), hover=hover)


def text(x: float, y: float, words: str, anchor: str = "start", kind: str = "") -> str:
    extra = f' class="{kind}"' if kind else ""
    return f'<text x="{place(x)}" y="{place(y)}" text-anchor="{anchor}"{extra}>{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{place(x1)}" y1="{place(y1)}" x2="{place(x2)}" y2="{place(y2)}" class="{kind}"/>'


def rect(x: float, y: float, width: float, height: float, kind: str, tip: str = "", extra: str = "") -> str:
    inner = f"<title>{escape(tip)}</title>" if tip else ""
    return (
        f'<rect x="{place(x)}" y="{place(y)}" width="{place(max(width, 0))}" height="{place(max(height, 0))}" '
        f'class="{kind}"{extra}>{inner}</rect>'
    )


def circle(x: float, y: float, radius: float, kind: str, tip: str = "") -> str:
    inner = f"<title>{escape(tip)}</title>" if tip else ""
    return f'<circle cx="{place(x)}" cy="{place(y)}" r="{place(radius)}" class="{kind}">{inner}</circle>'


def polyline(points: list[tuple[float, float]], kind: str) -> str:
    path = " ".join(f"{place(x)},{place(y)}" for x, y in points)
    return f'<polyline points="{path}" class="{kind}"/>'


def place(value: float) -> str:
    """Two decimals at most: a hundredth of a unit can't be seen."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


PARTS = ("c0", "nil", "c1")
"""Colours of −1, 0, +1."""


def sample(entry: LegendEntry) -> str:
    """How what a legend names is drawn, in 22 × 8 units."""
    if entry.line is None:
        kind = PARTS[(entry.part or 0) % len(PARTS)]
        return f'<rect x="6" y="-1" width="10" height="10" rx="2" class="bar {kind}"/>'
    kind = colour(entry.line.colour)
    if not entry.line.joined:
        return circle(11, 4, 4, f"dot {kind}")
    return line(1, 4, 21, 4, f"curve {kind}{' dashed' if entry.line.dashed else ''}")


def draw_bars(chart: Bars, width: float, height: float) -> Drawing:
    """A histogram."""
    y = Scale(0.0, max([*chart.values, 1e-9]) * 1.05, height - BOTTOM, TOP)
    step = (width - LEFT - RIGHT) / max(len(chart.values), 1)
    parts = []
    for tick in y.ticks(4):
        parts.append(line(LEFT, y(tick), width - RIGHT, y(tick), "grid"))
        parts.append(text(LEFT - 7, y(tick) + 4, f"{100 * tick:.4g} %", "end"))
    for index, value in enumerate(chart.values):
        tip = f"{chart.edges[index]} to {chart.edges[index + 1]}: {100 * value:.3g} %"
        parts.append(rect(LEFT + index * step + 1, y(value), step - 2, y(0) - y(value), "bar c0", tip))
    parts.append(line(LEFT, height - BOTTOM, width - RIGHT, height - BOTTOM, "axis"))
    every = 1 if len(chart.edges) <= 12 else 3
    for index, words in enumerate(chart.edges):
        if index % every == 0:
            parts.append(text(LEFT + index * step, height - BOTTOM + 16, words, "middle"))
    parts.append(text((LEFT + width - RIGHT) / 2, height - 4, chart.x_label, "middle", "label"))
    return svg(width, height, f"{chart.title}, {chart.y_label} by {chart.x_label}", parts)


LEFT, RIGHT, TOP, BOTTOM = 46.0, 14.0, 16.0, 40.0

NAME_WIDTH = 6.5
"""Pixels of a letter, about."""


def draw_lines(chart: Lines, width: float, height: float) -> Drawing:
    """Curves. The page's script reads `data-hover` to show the values under the pointer."""
    x, y = _scales(chart, width, height)
    parts = [*_axes(chart, x, y, width, height)]
    for mark in chart.marks:
        at = x(mark.x)
        parts.append(line(at, TOP, at, height - BOTTOM, "mark"))
        right = at > width * 0.6
        parts.append(text(at + (4 if right else -4), TOP - 4, mark.label, "end" if right else "start", "note"))
    for each in chart.lines:
        parts += _curve(each, x, y) + _names(each, x, y, width)
    label = f"{chart.title}: {', '.join(each.label for each in chart.lines)}"
    return svg(width, height, label, parts, json.dumps(_hover(chart, x, y, height), separators=(",", ":")))


def _scales(chart: Lines, width: float, height: float) -> tuple[Scale, Scale]:
    if chart.unit:
        return Scale(0.0, 1.0, LEFT, width - RIGHT), Scale(0.0, 1.0, height - BOTTOM, TOP)
    points = [point for each in chart.lines for point in each.points]
    xs = [*(point[0] for point in points), *(mark.x for mark in chart.marks)]
    low, high = min(xs), max(xs)
    exact = low < high and not chart.log_x
    across = Scale(low, high, LEFT, width - RIGHT) if exact else fit(xs, LEFT, width - RIGHT, log=chart.log_x)
    return across, fit((point[1] for point in points), height - BOTTOM, TOP, log=chart.log_y)


def _axes(chart: Lines, x: Scale, y: Scale, width: float, height: float) -> list[str]:
    parts = []
    for tick in y.ticks():
        parts.append(line(LEFT, y(tick), width - RIGHT, y(tick), "grid"))
        parts.append(text(LEFT - 7, y(tick) + 4, tick_text(tick), "end"))
    parts.append(line(LEFT, height - BOTTOM, width - RIGHT, height - BOTTOM, "axis"))
    ticks = x.ticks(5 if width > 400 else 4)
    parts += [text(x(tick), height - BOTTOM + 16, tick_text(tick), "middle") for tick in ticks]
    parts.append(text((LEFT + width - RIGHT) / 2, height - 4, chart.x_label, "middle", "label"))
    return parts


def _curve(each: Line, x: Scale, y: Scale) -> list[str]:
    places = [(x(at), y(value)) for at, value in each.points]
    kind = colour(each.colour)
    parts = (
        [polyline(places, f"curve {kind}{' dashed' if each.dashed else ''}")] if len(places) > 1 and each.joined else []
    )
    if each.dots or len(places) == 1:
        parts += [
            circle(*at, 3.2, f"dot {kind}", f"{each.label}: {number(value[1])} at {number(value[0])}")
            for at, value in zip(places, each.points, strict=True)
        ]
    return parts


def _names(each: Line, x: Scale, y: Scale, width: float) -> list[str]:
    """At their points, above or below; one that would lie on another is left out."""
    parts: list[str] = []
    taken: list[tuple[float, float, float, float]] = []
    for name, (at, value) in zip(each.names, each.points, strict=False):
        right, length = x(at) > 0.7 * width, NAME_WIDTH * len(name)
        start = x(at) - 7 - length if right else x(at) + 7
        for base in (y(value) - 7, y(value) + 15):
            box = start, base - 11, start + length, base + 2
            if not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
                taken.append(box)
                parts.append(text(x(at) + (-7 if right else 7), base, name, "end" if right else "start", "note"))
                break
    return parts


def _hover(chart: Lines, x: Scale, y: Scale, height: float) -> dict[str, object]:
    """For each curve its points as [x, y, words]; what is drawn dashed in grey is a limit, not a measurement."""
    return {
        "top": TOP,
        "bottom": height - BOTTOM,
        "x": chart.x_label,
        "lines": [
            {
                "label": each.label,
                "colour": colour(each.colour),
                "points": [
                    [float(place(x(at))), float(place(y(value))), number(value), number(at)]
                    for at, value in each.points
                ],
            }
            for each in chart.lines
            if len(each.points) > 2 or each.dots
        ],
    }


def draw_cells(chart: Cells, width: float) -> Drawing:
    """A matrix of cells: shades with their value, or small bars of shares that make up 1."""
    left, top, height, gap = 26.0, 22.0, 22.0, 3.0
    step = (width - left) / max(len(chart.columns), 1)
    parts = [
        text(left + step * (column + 0.5) - gap / 2, top - 8, words, "middle")
        for column, words in enumerate(chart.columns)
    ]
    largest = max((value[0] for row in chart.values for value in row if value), default=0.0)
    for row, (name, values) in enumerate(zip(chart.rows, chart.values, strict=True)):
        y = top + row * height
        parts.append(text(left - 8, y + height / 2 + 2.5, name, "end"))
        for column, value in enumerate(values):
            if value is not None:
                where = (left + column * step, y, step - gap, height - gap)
                name_of_cell = f"block {name}, {chart.columns[column]}"
                parts += (
                    _shares(chart, value, where, name_of_cell)
                    if chart.parts
                    else _shade(value[0], largest, where, name_of_cell)
                )
    return svg(width, top + height * len(chart.rows), chart.title, parts)


def _shares(chart: Cells, value: tuple[float, ...], where: tuple[float, ...], name: str) -> list[str]:
    x, y, width, height = where
    tip = f"{name}: " + ", ".join(f"{part} {100 * share:.1f} %" for part, share in zip(chart.parts, value, strict=True))
    parts = []
    for kind, share in zip(PARTS, value, strict=False):
        parts.append(rect(x, y, width * share, height, f"bar {kind}", tip))
        x += width * share
    return parts


def _shade(value: float, largest: float, where: tuple[float, ...], name: str) -> list[str]:
    x, y, width, height = where
    depth = 0.08 + 0.5 * (value / largest if largest else 0.0)
    return [
        rect(x, y, width, height, "bar c0", f"{name}: {100 * value:.3g} %", extra=f' fill-opacity="{depth:.2f}"'),
        text(
            x + width / 2,
            y + height / 2 + 4,
            f"{100 * value:.2g}" if value < 0.1 else f"{100 * value:.0f}",
            "middle",
            "cell",
        ),
    ]


def draw_dots(chart: Dots, width: float) -> Drawing:
    """A value a row on one axis, with its interval."""
    left, right, top, height = 8.0, 14.0, 6.0, 40.0
    values = [each for dot in chart.dots for each in (dot.value, dot.low, dot.high) if each is not None]
    scale = fit(values, left, width - right, log=chart.log_x, zero=not chart.log_x)
    bottom = top + height * len(chart.dots)
    parts = []
    for tick in scale.ticks():
        parts.append(line(scale(tick), top, scale(tick), bottom, "grid"))
        parts.append(text(scale(tick), bottom + 16, tick_text(tick), "middle"))
    for row, dot in enumerate(chart.dots):
        middle = top + height * row + 29
        kind = "c0" if dot.strong else "cg"
        weight = "strong" if dot.strong else "plain"
        interval = ""
        if dot.low is not None and dot.high is not None:
            interval = f" ({number(dot.low)} to {number(dot.high)})"
            start, end = scale(dot.low), scale(dot.high)
            parts.append(rect(start, middle - 3, end - start, 6, f"span {kind}", extra=' rx="3"'))
        parts.append(line(left, middle, width - right, middle, "rail"))
        parts.append(
            circle(scale(dot.value), middle, 5.5, f"dot {kind}", f"{dot.label}: {number(dot.value)}{interval}")
        )
        parts.append(text(left, middle - 11, dot.label, "start", weight))
        parts.append(text(width - right, middle - 11, number(dot.value), "end", weight))
    parts.append(text((left + width - right) / 2, bottom + 36, chart.x_label, "middle", "label"))
    label = f"{chart.title}: {'; '.join(f'{dot.label} {number(dot.value)}' for dot in chart.dots)}"
    return svg(width, bottom + 40.0, label, parts)


WIDE, NARROW, HEIGHT = 460.0, 340.0, 270.0
"""Units of a drawing, about pixels: two wide ones, or three narrow ones, fill a line of the page."""


def draw(chart: Chart, *, narrow: bool = False) -> Drawing:
    width, height = (NARROW, 220.0) if narrow else (WIDE, HEIGHT)
    match chart:
        case Lines():
            return draw_lines(chart, width, height)
        case Dots():
            return draw_dots(chart, width)
        case Bars():
            return draw_bars(chart, width, height)
        case Cells():
            return draw_cells(chart, width)


EDGE, GAP, TITLE, LEGEND_LINE, SAMPLE, CHARACTER = 16.0, 32.0, 22.0, 17.0, 28.0, 6.3
"""Units, about pixels. A character's width is the most that one of the legend's size takes on average."""
FONT = "'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', sans-serif"


def draw_figures(content: Iterable[blocks.Block]) -> dict[str, str]:
    """Name → SVG, of every figure of the report."""
    return {each.name: picture(each.charts) for each in content if isinstance(each, blocks.Figure)}


def picture(charts: Sequence[Chart]) -> str:
    """The charts beside each other, in one file that needs nothing else."""
    panels = [_panel(chart, draw(chart, narrow=len(charts) > 2)) for chart in charts]
    width = sum(panel.drawing.width for panel in panels) + GAP * (len(panels) - 1) + 2 * EDGE
    below = max(panel.head for panel in panels)
    height = below + max(panel.drawing.height for panel in panels) + 2 * EDGE
    x, parts = EDGE, []
    for panel in panels:
        parts.append(f'<svg x="{place(x)}" y="{place(EDGE)}" overflow="visible">{panel.words}</svg>')
        parts.append(panel.drawing.placed(x, EDGE + below))
        x += panel.drawing.width + GAP
    label = "; ".join(panel.drawing.label for panel in panels)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{place(width)}" height="{place(height)}" '
        f'viewBox="0 0 {place(width)} {place(height)}" role="img" aria-label="{escape(label)}">'
        f"<style>{_style()}</style>"
        f'<rect width="100%" height="100%" class="ground"/>{"".join(parts)}</svg>\n'
    )


@attrs.frozen
class _Panel:
    drawing: Drawing
    words: str
    """Title and legend, above the drawing."""
    head: float
    """How much room they take."""


def _panel(chart: Chart, drawing: Drawing) -> _Panel:
    unit = f' <tspan class="unit">{escape(unit_of(chart))}</tspan>' if unit_of(chart) else ""
    parts = [f'<text x="0" y="14" class="title">{escape(chart.title)}{unit}</text>']
    x, y = 0.0, TITLE
    for entry in legend(chart):
        width = SAMPLE + CHARACTER * len(entry.label) + 12
        if x and x + width > drawing.width:
            x, y = 0.0, y + LEGEND_LINE
        parts.append(f'<svg x="{place(x)}" y="{place(y + 4)}" overflow="visible">{sample(entry)}</svg>')
        parts.append(text(x + SAMPLE, y + 12, entry.label))
        x += width
    return _Panel(drawing, "".join(parts), y + (LEGEND_LINE if x else 0) + 4)


@cache
def _style() -> str:
    """The page's own, in light; without variables, which programs that convert SVG don't know."""
    colours = dict(re.findall(r"(--\w+): light-dark\((#\w+)", _file("page.css")))
    rules = re.sub(r"var\((--\w+)\)", lambda found: colours[found[1]], _file("charts/drawing.css"))
    own = (
        f"svg text {{ font-family: {FONT}; }} .ground {{ fill: #fff; }} "
        f"svg text.title {{ font-size: 14px; font-weight: 600; fill: {colours['--text']}; }} "
        f".unit {{ font-size: 12px; font-weight: 400; fill: {colours['--soft']}; }}"
    )
    return " ".join(f"{rules} {own}".split())


def _file(name: str) -> str:
    return (Path(__file__).parents[1] / name).read_text(encoding="utf-8")
