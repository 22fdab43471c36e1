"""Charts as SVG: crisp at any size, in the colours of what they stand in, without a library."""

from bitnet_cli.report.charts.chart_data import Bars, Cells, Chart, Dots, Lines
from bitnet_cli.report.charts.svg.bars import draw_bars
from bitnet_cli.report.charts.svg.cells import draw_cells
from bitnet_cli.report.charts.svg.dots import draw_dots
from bitnet_cli.report.charts.svg.elements import Drawing
from bitnet_cli.report.charts.svg.lines import draw_lines

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
