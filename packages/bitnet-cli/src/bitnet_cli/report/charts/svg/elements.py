"""The few SVG elements that charts are made of. Colours are classes: the page's style decides, in light and dark."""

from html import escape

import attrs

from bitnet_cli.report.charts.chart_data import GREY, LegendEntry

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
