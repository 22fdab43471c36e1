"""Axes, thinning and the drawings themselves, without a browser."""

import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_cli.report.blocks import Figure
from bitnet_cli.report.charts.axes import fit, tick_text, wants_log
from bitnet_cli.report.charts.chart_data import GREY, Bars, Cells, Chart, Dot, Dots, Line, Lines, Mark, thin
from bitnet_cli.report.charts.svg import draw, draw_figures, picture
from bitnet_cli.report.html import to_html

VALUES = st.lists(st.floats(-1e9, 1e9, allow_subnormal=False), min_size=1, max_size=20)
POSITIVE = st.lists(st.floats(1e-9, 1e9, allow_subnormal=False), min_size=1, max_size=20)


@given(VALUES, st.booleans())
def test_a_linear_scale_holds_its_values(values: list[float], zero: bool) -> None:
    scale = fit(values, 100.0, 20.0, zero=zero)
    assert all(20.0 - 1e-6 <= scale(value) <= 100.0 + 1e-6 for value in values)
    ticks = scale.ticks()
    assert ticks == sorted(ticks)
    assert 1 <= len(ticks) <= 8


@given(POSITIVE)
def test_a_log_scale_holds_its_values(values: list[float]) -> None:
    scale = fit(values, 0.0, 100.0, log=True)
    assert all(0.0 <= scale(value) <= 100.0 for value in values)
    assert all(scale.low <= tick <= scale.high for tick in scale.ticks())


def test_a_decade_is_as_long_as_the_next() -> None:
    scale = fit([1.0, 10.0, 100.0], 0.0, 1.0, log=True)
    assert scale(10.0) - scale(1.0) == pytest.approx(scale(100.0) - scale(10.0))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1500.0, "1.5k"), (2e6, "2M"), (2e-5, "2e-5"), (0.002, "0.002"), (-0.5, "-0.5"), (18.0, "18")],
)
def test_tick_words(value: float, text: str) -> None:
    assert tick_text(value) == text


@given(st.lists(st.floats(-100, 100), min_size=3, max_size=3000))
def test_thinning_keeps_ends_peaks_and_order(values: list[float]) -> None:
    points = list(enumerate(values))
    kept = thin(points, most=100)
    assert len(kept) <= 110
    assert list(kept) == sorted(set(kept))
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]
    assert max(value for _, value in kept) == max(values)
    assert min(value for _, value in kept) == min(values)
    assert set(kept) <= set(points)


def test_what_is_not_finite_is_not_drawn() -> None:
    assert thin([(1, math.nan), (2, 1.0), (3, math.inf)]) == ((2, 1.0),)
    assert not wants_log([math.nan, 0.0, 100.0])
    assert wants_log([0.1, 100.0])


CHARTS: dict[str, Chart] = {
    "lines": Lines(
        title="a <b>", x_label="step", y_label="nats", marks=(Mark(3, "A8 → A4"),),
        lines=(Line("one & two", ((1, 2.0), (5, 3.0))), Line("limit", ((1, 2.5), (5, 2.5)), GREY, dashed=True)),
    ),
    "point": Lines(title="one point", x_label="step", y_label="", lines=(Line("x", ((4, 0.0),)),)),
    "dots": Dots(title="d", x_label="nats", dots=(Dot("s", 2.0, 1.5, 2.5, strong=True), Dot("u", 18.0)), log_x=True),
    "scatter": Lines(
        title="s", x_label="MB", y_label="ppl", log_x=True, log_y=True,
        lines=(Line("files", ((50, 16.0), (270, 3.2)), dots=True, joined=False, names=("Q2", "F16")),),
    ),
    "bars": Bars(title="b", x_label="P", y_label="share", edges=("0", "1", "2"), values=(0.25, 0.75)),
    "no bars": Bars(title="b", x_label="P", y_label="share", edges=("0", "1"), values=(0.0,)),
    "shares": Cells(
        title="c", columns=("q", "k"), rows=("0",), values=(((0.2, 0.5, 0.3), None),), parts=("−1", "0", "+1")
    ),
    "shades": Cells(title="c", columns=("q",), rows=("0", "1"), values=(((0.0,),), ((0.5,),))),
}  # fmt: skip


@pytest.mark.parametrize("name", CHARTS)
@pytest.mark.parametrize("narrow", [False, True])
def test_a_drawing_is_sound_and_stays_within_its_box(name: str, narrow: bool) -> None:
    drawn = draw(CHARTS[name], narrow=narrow).inline()
    root = ET.fromstring(drawn)
    width, height = (float(each) for each in root.attrib["viewBox"].split()[2:])
    for rect in root.iter("rect"):
        x, y, w, h = (float(rect.attrib[key]) for key in ("x", "y", "width", "height"))
        assert -0.1 <= x <= x + w <= width + 0.1
        assert -0.1 <= y <= y + h <= height + 0.1
    for circle in root.iter("circle"):
        assert 0 <= float(circle.attrib["cx"]) <= width
        assert 0 <= float(circle.attrib["cy"]) <= height
    assert "nan" not in drawn
    assert not re.search(r"(fill|stroke)=", drawn), "colours are the page's: in light and dark"


def test_shares_fill_their_cell() -> None:
    root = ET.fromstring(draw(CHARTS["shares"]).inline())
    widths = [float(rect.attrib["width"]) for rect in root.iter("rect")]
    assert [width / sum(widths) for width in widths] == pytest.approx([0.2, 0.5, 0.3], abs=1e-3)
    assert root.find("rect/title").text == "block 0, q: −1 20.0 %, 0 50.0 %, +1 30.0 %"  # type: ignore[union-attr]


def test_every_chart_has_a_picture_and_a_place_on_the_page() -> None:
    blocks = [Figure(name.replace(" ", "-"), "caption", (chart,)) for name, chart in CHARTS.items()]
    pictures = draw_figures(blocks)
    assert pictures.keys() == {block.name for block in blocks}
    assert all(ET.fromstring(each).tag == "{http://www.w3.org/2000/svg}svg" for each in pictures.values())
    html = to_html(blocks)
    assert html.count("<figure") == len(blocks)
    assert "a &lt;b&gt;" in html


def test_a_picture_stands_alone() -> None:
    """Programs that convert SVG for papers know no variables, no `light-dark`, and nothing outside the file."""
    drawn = picture([CHARTS["lines"], CHARTS["shares"], CHARTS["scatter"]])
    root = ET.fromstring(drawn)
    assert "var(" not in drawn
    assert "light-dark" not in drawn
    assert "url(" not in drawn
    used = {kind for each in root.iter() for kind in each.attrib.get("class", "").split()} - {"label", "one", "note"}
    style = root.find("{*}style").text  # type: ignore[union-attr]
    assert {kind for kind in used if f".{kind}" not in style} <= {"plain", "strong"}  # type: ignore[operator]
    words = [text.text for text in root.findall(".//{*}text")]
    assert {"one & two", "limit", "−1", "+1", "F16"} <= set(words)
    assert [
        (title.text or "").strip() for title in root.findall(".//{*}text") if title.attrib.get("class") == "title"
    ] == [
        "a <b>",
        "c",
        "s",
    ]
    width = float(root.attrib["width"])
    panels = [float(panel.attrib["x"]) + float(panel.attrib["width"]) for panel in root.findall("{*}svg[@width]")]
    assert panels == sorted(panels)
    assert panels[-1] <= width


def test_unjoined_points_have_no_line_and_their_names_beside_them() -> None:
    root = ET.fromstring(draw(CHARTS["scatter"]).inline())
    assert not list(root.iter("polyline"))
    first, second = (float(circle.attrib["cx"]) for circle in root.iter("circle"))
    names = {text.text: text for text in root.iter("text")}
    assert float(names["Q2"].attrib["x"]) > first
    assert float(names["F16"].attrib["x"]) < second, "at the right edge a name stands left of its point"
