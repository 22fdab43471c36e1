"""A matrix of cells: shades with their value, or small bars of shares that make up 1."""

from bitnet_cli.report.charts.chart_data import Cells
from bitnet_cli.report.charts.svg.elements import PARTS, Drawing, rect, svg, text

LEFT, TOP, ROW, GAP = 26.0, 22.0, 22.0, 3.0


def draw_cells(chart: Cells, width: float) -> Drawing:
    step = (width - LEFT) / max(len(chart.columns), 1)
    parts = [
        text(LEFT + step * (column + 0.5) - GAP / 2, TOP - 8, words, "middle")
        for column, words in enumerate(chart.columns)
    ]
    largest = max((value[0] for row in chart.values for value in row if value), default=0.0)
    for row, (name, values) in enumerate(zip(chart.rows, chart.values, strict=True)):
        y = TOP + row * ROW
        parts.append(text(LEFT - 8, y + ROW / 2 + 2.5, name, "end"))
        for column, value in enumerate(values):
            if value is not None:
                where = (LEFT + column * step, y, step - GAP, ROW - GAP)
                name_of_cell = f"block {name}, {chart.columns[column]}"
                parts += (
                    _shares(chart, value, where, name_of_cell)
                    if chart.parts
                    else _shade(value[0], largest, where, name_of_cell)
                )
    return svg(width, TOP + ROW * len(chart.rows), chart.title, parts)


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
