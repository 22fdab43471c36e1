"""Histograms."""

from bitnet_cli.report.charts.chart_data import Bars
from bitnet_cli.report.charts.svg.axes import Scale
from bitnet_cli.report.charts.svg.elements import Drawing, line, rect, svg, text

LEFT, RIGHT, TOP, BOTTOM = 46.0, 14.0, 16.0, 40.0


def draw_bars(chart: Bars, width: float, height: float) -> Drawing:
    y = Scale(0.0, max([*chart.values, 1e-9]) * 1.05, height - BOTTOM, TOP)
    step = (width - LEFT - RIGHT) / max(len(chart.values), 1)
    parts = []
    for tick in y.ticks(4):
        parts.append(line(LEFT, y(tick), width - RIGHT, y(tick), "grid"))
        parts.append(text(LEFT - 7, y(tick) + 4, f"{100 * tick:.4g} %", "end"))
    for number, value in enumerate(chart.values):
        tip = f"{chart.edges[number]} to {chart.edges[number + 1]}: {100 * value:.3g} %"
        parts.append(rect(LEFT + number * step + 1, y(value), step - 2, y(0) - y(value), "bar c0", tip))
    parts.append(line(LEFT, height - BOTTOM, width - RIGHT, height - BOTTOM, "axis"))
    every = 1 if len(chart.edges) <= 12 else 3
    for number, words in enumerate(chart.edges):
        if number % every == 0:
            parts.append(text(LEFT + number * step, height - BOTTOM + 16, words, "middle"))
    parts.append(text((LEFT + width - RIGHT) / 2, height - 4, chart.x_label, "middle", "label"))
    return svg(width, height, f"{chart.title}, {chart.y_label} by {chart.x_label}", parts)
