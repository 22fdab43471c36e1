"""A value a row on one axis, with its interval."""

from bitnet_cli.report.charts.chart_data import Dots
from bitnet_cli.report.charts.svg.axes import fit, tick_text
from bitnet_cli.report.charts.svg.elements import Drawing, circle, line, rect, svg, text
from bitnet_cli.report.number_format import number

LEFT, RIGHT, TOP, ROW, BOTTOM = 8.0, 14.0, 6.0, 40.0, 40.0


def draw_dots(chart: Dots, width: float) -> Drawing:
    values = [each for dot in chart.dots for each in (dot.value, dot.low, dot.high) if each is not None]
    scale = fit(values, LEFT, width - RIGHT, log=chart.log_x, zero=not chart.log_x)
    bottom = TOP + ROW * len(chart.dots)
    parts = []
    for tick in scale.ticks():
        parts.append(line(scale(tick), TOP, scale(tick), bottom, "grid"))
        parts.append(text(scale(tick), bottom + 16, tick_text(tick), "middle"))
    for row, dot in enumerate(chart.dots):
        middle = TOP + ROW * row + 29
        kind = "c0" if dot.strong else "cg"
        weight = "strong" if dot.strong else "plain"
        interval = ""
        if dot.low is not None and dot.high is not None:
            interval = f" ({number(dot.low)} to {number(dot.high)})"
            start, end = scale(dot.low), scale(dot.high)
            parts.append(rect(start, middle - 3, end - start, 6, f"span {kind}", extra=' rx="3"'))
        parts.append(line(LEFT, middle, width - RIGHT, middle, "rail"))
        parts.append(
            circle(scale(dot.value), middle, 5.5, f"dot {kind}", f"{dot.label}: {number(dot.value)}{interval}")
        )
        parts.append(text(LEFT, middle - 11, dot.label, "start", weight))
        parts.append(text(width - RIGHT, middle - 11, number(dot.value), "end", weight))
    parts.append(text((LEFT + width - RIGHT) / 2, bottom + 36, chart.x_label, "middle", "label"))
    label = f"{chart.title}: {'; '.join(f'{dot.label} {number(dot.value)}' for dot in chart.dots)}"
    return svg(width, bottom + BOTTOM, label, parts)
