"""The report's charts as PNG, for Markdown, which has no other pictures."""

import io
from collections.abc import Iterable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bitnet_cli.report import blocks
from bitnet_cli.report.charts.chart import GREY, Bars, Cells, Chart, Dots, Lines

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9")
"""Of Okabe and Ito (2008), whom colour-blind readers can follow; the page's style has them too."""
_GREY, _NIL = "#8a8f98", "#e3e6ea"


def draw_figures(content: Iterable[blocks.Block]) -> dict[str, bytes]:
    """Name → PNG, of every figure of the report."""
    return {each.name: _picture(each.charts) for each in content if isinstance(each, blocks.Figure)}


def _picture(charts: tuple[Chart, ...]) -> bytes:
    rows = max((len(chart.rows) for chart in charts if isinstance(chart, Cells)), default=0)
    height = max(4.0, 0.32 * rows + 1) if len(charts) < 3 else max(3.2, 0.32 * rows + 1)
    figure = Figure(figsize=(8 if len(charts) == 1 else 11, height), layout="constrained")
    for number, chart in enumerate(charts, start=1):
        _draw(figure.add_subplot(1, len(charts), number), chart)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def _draw(axes: Axes, chart: Chart) -> None:
    axes.set_title(chart.title)
    match chart:
        case Lines():
            _lines(axes, chart)
        case Dots():
            _dots(axes, chart)
        case Bars():
            places = range(len(chart.values))
            axes.bar(places, chart.values, width=0.94, align="edge", color=COLOURS[0])
            axes.set(xlabel=chart.x_label, ylabel=chart.y_label)
            every = 1 if len(chart.edges) <= 12 else 3
            axes.set_xticks(range(len(chart.edges))[::every], chart.edges[::every])
        case Cells():
            _cells(axes, chart)


def _lines(axes: Axes, chart: Lines) -> None:
    for each in chart.lines:
        style: dict[str, Any] = {"color": _GREY if each.colour == GREY else COLOURS[each.colour % len(COLOURS)]}
        style["linestyle"] = "--" if each.dashed else "-"
        axes.plot(*zip(*each.points, strict=True), label=each.label, marker="o" if each.dots else "", ms=4, **style)
    for mark in chart.marks:
        axes.axvline(mark.x, color=_GREY, linestyle=":", linewidth=1.5, label=mark.label)
    axes.set(xlabel=chart.x_label, ylabel=chart.y_label)
    if chart.log_y:
        axes.set_yscale("log")
    axes.grid(alpha=0.25)
    if len(chart.lines) > 1:
        axes.legend(frameon=False)


def _dots(axes: Axes, chart: Dots) -> None:
    for row, dot in enumerate(reversed(chart.dots)):
        colour = COLOURS[0] if dot.strong else _GREY
        if dot.low is not None and dot.high is not None:
            axes.plot((dot.low, dot.high), (row, row), color=colour, linewidth=4, alpha=0.4)
        axes.plot(dot.value, row, "o", color=colour)
    axes.set_yticks(range(len(chart.dots)), [dot.label for dot in reversed(chart.dots)])
    axes.set(xlabel=chart.x_label)
    if chart.log_x:
        axes.set_xscale("log")
    axes.grid(alpha=0.25, axis="x")


def _cells(axes: Axes, chart: Cells) -> None:
    largest = max((value[0] for row in chart.values for value in row if value), default=0.0)
    for row, values in enumerate(chart.values):
        for column, value in enumerate(values):
            if value is None:
                continue
            if chart.parts:
                start = column + 0.0
                for share, colour in zip(value, (COLOURS[0], _NIL, COLOURS[1]), strict=False):
                    axes.barh(row, 0.94 * share, left=start, height=0.85, color=colour)
                    start += 0.94 * share
            else:
                depth = 0.08 + 0.6 * (value[0] / largest if largest else 0.0)
                axes.barh(row, 0.94, left=column, height=0.85, color=COLOURS[0], alpha=depth)
                axes.text(column + 0.47, row, f"{100 * value[0]:.2g}", ha="center", va="center", fontsize=8)
    axes.set_xticks([column + 0.47 for column in range(len(chart.columns))], chart.columns)
    axes.set_yticks(range(len(chart.rows)), chart.rows)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
