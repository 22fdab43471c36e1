"""Curves. The page's script reads `data-hover` to show the values under the pointer."""

import json

from bitnet_cli.report.charts.chart_data import Line, Lines
from bitnet_cli.report.charts.svg.axes import Scale, fit, tick_text
from bitnet_cli.report.charts.svg.elements import Drawing, circle, colour, line, place, polyline, svg, text
from bitnet_cli.report.number_format import number

LEFT, RIGHT, TOP, BOTTOM = 46.0, 14.0, 16.0, 40.0

NAME_WIDTH = 6.5
"""Pixels of a letter, about."""


def draw_lines(chart: Lines, width: float, height: float) -> Drawing:
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
