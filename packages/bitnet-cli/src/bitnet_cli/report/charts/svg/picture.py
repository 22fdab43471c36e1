"""A figure as an SVG file, which Markdown shows and a paper takes: on white, with its titles and legends in it."""

import re
from collections.abc import Iterable, Sequence
from functools import cache
from html import escape
from pathlib import Path

import attrs

from bitnet_cli.report import blocks
from bitnet_cli.report.charts.chart_data import Chart, legend, unit_of
from bitnet_cli.report.charts.svg.draw import draw
from bitnet_cli.report.charts.svg.elements import Drawing, place, sample, text

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
    rules = re.sub(r"var\((--\w+)\)", lambda found: colours[found[1]], _file("charts/svg/drawing.css"))
    own = (
        f"svg text {{ font-family: {FONT}; }} .ground {{ fill: #fff; }} "
        f"svg text.title {{ font-size: 14px; font-weight: 600; fill: {colours['--text']}; }} "
        f".unit {{ font-size: 12px; font-weight: 400; fill: {colours['--soft']}; }}"
    )
    return " ".join(f"{rules} {own}".split())


def _file(name: str) -> str:
    return (Path(__file__).parents[2] / name).read_text(encoding="utf-8")
