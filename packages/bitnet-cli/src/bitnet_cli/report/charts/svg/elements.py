"""The few SVG elements that charts are made of. Colours are classes: the page's style decides, in light and dark."""

from html import escape

from bitnet_cli.report.charts.chart import GREY

PALETTE = 6
"""How many colours the style has (c0 to c5); further series use them again, dashed."""


def colour(number: int) -> str:
    return "cg" if number == GREY else f"c{number % PALETTE}"


def svg(width: float, height: float, label: str, parts: list[str], hover: str = "") -> str:
    data = f' data-hover="{escape(hover)}"' if hover else ""
    body = "".join(parts)
    return (
        f'<svg viewBox="0 0 {place(width)} {place(height)}" role="img" aria-label="{escape(label)}"{data}>{body}</svg>'
    )


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
