"""The report as a person has it: in a real browser, in light and dark, on a desk and on a phone."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import expect

from benchmarks.browser import MISSING, find_browser, open_browser
from bitnet_cli import run_folder
from bitnet_cli.report.compare_runs import write_comparison
from bitnet_cli.report.write_report import write_report
from bitnet_cli.run_folder import Done

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

expect.set_options(timeout=60_000)  # ms; a busy machine may take its time
SIZES = {"wide": (1440, 900), "desk": (1280, 900), "phone": (390, 844)}
HOSTILE = "<script>window.ran = true</script><img src=https://example.org/x.png onerror='window.ran = true'>"
"""What a teacher might answer; none of it may happen."""
LONG = "an_unbroken_word_" * 40


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    path = find_browser()
    if path is None:
        pytest.skip(MISSING)
    with open_browser(path) as browser:
        yield browser


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two run folders with everything that a report shows; the second was stopped while training."""
    place = tmp_path_factory.mktemp("runs")
    for name in ("first", "second"):
        make_run(place / name)
        write_report(place / name)
    stopped = place / "second"
    (stopped / "reports" / "mini_evaluation_report.json").unlink()
    with (stopped / "logs" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2010, "lo')
    run_folder.write_json(run_folder.started_path(stopped, "train"), {"since": "2026-11-23T06:00:00+00:00"})
    write_report(stopped)
    return place / "first", stopped


def make_run(folder: Path) -> None:
    run_folder.make_folders(folder)
    (folder / "manifest.resolved.toml").write_text(
        f'[run]\nname = "{folder.name}"\n[train]\nsteps = {len(folder.name)}\n'
    )
    bins = [{"from": n / 15, "positions": 40 + n, "confidence": (n + 0.5) / 15, "accuracy": n / 15} for n in range(15)]
    calibration = {"ece": 0.03, "bin_count": 15, "bins": bins}
    asked = {"id": "a", "messages": [{"role": "user", "content": HOSTILE}]}
    evaluation: dict[str, Any] = {
        "heldout_kl": 2.4, "untrained_kl": 18.1, "unigram_kl": 3.0, "bigram_kl": 2.8, "top1_agreement": 0.31,
        "perplexity": 80.0, "teacher_perplexity": 20.0, "tokens_per_second": 50.0, "teacher_tokens_per_second": 25.0,
        "memory_bytes": 60_000_000, "teacher_memory_bytes": 540_000_000, "qei": 2.25, "qei_speed": 4.5,
        "activation_bits": 4, "intervals_95": {"heldout_kl": [2.3, 2.5]}, "heldout_at_8_bits": {"kl": 2.5},
        "heldout": {"documents": 12, "calibration": calibration, "teacher_calibration": calibration},
        "runtime": f"torch 2.15.0+cu132 on cpu, 2 threads, bfloat16, A8, {LONG}", "qei_quality": "perplexity",
        "generation": {"json_validity": 0.5, "answers": [asked | {"text": LONG}]},
        "teacher_answers": [asked | {"text": HOSTILE}],
    }  # fmt: skip
    run_folder.write_json(folder / "reports" / "mini_evaluation_report.json", evaluation)
    run_folder.write_json(folder / "environment.json", {"git": {"commit": "abc", "dirty": True}, "cpu": LONG})
    rows = [
        {"step": step, "seen_tokens": 9 * step, "loss": 20 / step**0.3, "kd": 15 / step**0.3, "ce": 3.0, "format": 0.1,
         "lr": 1e-3 / step, "grad_norm": 200 / step, "bits": 4 if step > 1500 else 8, "tokens_per_second": 900.0}
        | ({"validation_kl": 10 / step**0.2} if step % 500 == 0 else {})
        for step in range(1, 2001)
    ]  # fmt: skip
    (folder / "logs" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shares = {"minus": 0.25, "zero": 0.5, "plus": 0.25, "dead_rows": 0.01, "flipped": 0.02}
    parts = [*(f"self_attn.{part}_proj" for part in "qkvo"), *(f"mlp.{part}_proj" for part in ("gate", "up", "down"))]
    layers = {f"model.layers.{block}.{part}": shares for block in range(6) for part in parts}
    run_folder.write_json(folder / "checkpoints" / "step_2000_health.json", {"step": 2000, "layers": layers})
    summary = {
        "mean_topk_mass": 0.9, "mean_other_mass": 0.1, "kd_coverage": 0.95, "k": 20, "kd_positions": 640,
        "other_mass_histogram": {"edges": [0.0, 0.01, 0.1, 1.0], "counts": [30, 20, 10]}, "tokenizer": LONG[:100],
    }  # fmt: skip
    run_folder.write_done(
        folder,
        Done(
            stage="project", fingerprint="f", finished="2026-11-23T06:00:00+00:00", seconds=1.0, settings={}, files={},
            formats={}, inputs={}, outputs={}, summary=summary, packages={},
        ),
    )  # fmt: skip


class Visit:
    """A page opened in a browser of its own, with what went wrong on it."""

    def __init__(self, browser: "Browser", file: Path, size: str, scheme: Any) -> None:
        width, height = SIZES[size]
        self._context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, has_touch=size == "phone"
        )
        self.page: Page = self._context.new_page()
        self.faults: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.faults.append(message.text))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.url = file.resolve().as_uri()
        self.page.goto(self.url)

    def __enter__(self) -> "Visit":
        return self

    def __exit__(self, *_: object) -> None:
        self._context.close()

    def asked(self) -> list[str]:
        """What the page loaded beside itself."""
        return [url for url in self.requests if url != self.url and not url.startswith("data:")]


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_report(browser: "Browser", runs: tuple[Path, Path], size: str, scheme: str) -> None:
    with Visit(browser, runs[0] / "report.html", size, scheme) as visit:
        assert visit.faults == []
        assert visit.asked() == []
        assert visit.page.evaluate("window.ran") is None
        assert visit.page.locator("article").first.inner_text().count("<script>") == 2, "question and answer, as text"
        check_layout(visit.page, SIZES[size][0])
        charts = visit.page.locator(".chart > svg")
        assert charts.count() == 12
        assert {visit.page.locator(f"#figure-{name}").count() for name in ("kl", "loss", "codes", "calibration")} == {1}
        check_charts(visit.page)
        check_contrast(visit.page, dark=scheme == "dark")


def check_layout(page: "Page", width: int) -> None:
    """Nothing is wider than the page; what needs more room scrolls within itself."""
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = page.evaluate(
        """width => [...document.querySelectorAll("main *")]
             .filter(e => !e.closest(".scroll, .chart, pre") && e.getBoundingClientRect().right > width + 1)
             .map(e => e.outerHTML.slice(0, 80))""",
        width,
    )
    assert outside == []
    overlapping = page.evaluate(
        """() => [...document.querySelectorAll("td, th, dd, dt")].filter(e => e.scrollWidth > e.clientWidth + 1)
             .map(e => e.outerHTML.slice(0, 80))"""
    )
    assert overlapping == [], "what a cell can't hold lies over the next one"


def check_charts(page: "Page") -> None:
    """Each chart has a size, and something drawn in it that has one as well."""
    sizes = page.evaluate(
        """() => [...document.querySelectorAll(".chart > svg")].map(svg => {
             const box = svg.getBoundingClientRect();
             const drawn = [...svg.querySelectorAll(".curve, .dot, .bar")].map(e => e.getBoundingClientRect());
             const within = d => d.left >= box.left - 5 && d.right <= box.right + 5
                                 && d.top >= box.top - 5 && d.bottom <= box.bottom + 5;
             const visible = drawn.filter(d => d.width + d.height > 1 && within(d));
             return [box.width, box.height, drawn.length, visible.length];
           })"""
    )
    wrong = page.evaluate(
        """() => [...document.querySelectorAll(".chart > svg rect")].filter(rect => {
             const svg = rect.ownerSVGElement, scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
             return Math.abs(rect.getBoundingClientRect().height - rect.getAttribute("height") * scale) > 0.5;
           }).length"""
    )
    assert wrong == 0, "the page's style stretches what was drawn to scale"
    for width, height, drawn, visible in sizes:
        assert width > 200
        assert height > 80
        assert drawn > 0
        assert visible >= 0.8 * drawn, "bars of no height are no fault"


def check_contrast(page: "Page", *, dark: bool) -> None:
    """Text and curves stand out from the ground by at least 4.5 and 3 to 1 (WCAG 2.2)."""
    ground = luminance(page, "body", "background-color")
    assert (ground < 0.1) == dark
    for selector, what, least in (
        ("p.lead", "color", 7.0),
        (".cards small", "color", 4.5),
        (".chart > svg text", "fill", 4.5),
        ("#figure-loss .curve.c0", "stroke", 3.0),
        ("#figure-loss .curve.c3", "stroke", 3.0),
    ):
        other = luminance(page, selector, what)
        ratio = (max(ground, other) + 0.05) / (min(ground, other) + 0.05)
        assert ratio >= least, (selector, ratio)


def luminance(page: "Page", selector: str, what: str) -> float:
    colour = page.locator(selector).first.evaluate("(e, what) => getComputedStyle(e).getPropertyValue(what)", what)
    parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_pointer_reads_values_off_the_curves(browser: "Browser", runs: tuple[Path, Path]) -> None:
    with Visit(browser, runs[0] / "report.html", "desk", "light") as visit:
        chart = visit.page.locator("#figure-loss svg[data-hover]")
        chart.scroll_into_view_if_needed()
        chart.hover(position={"x": 300, "y": 100})
        tip = visit.page.locator(".tip")
        assert tip.count() == 1
        words = tip.inner_text()
        assert words.startswith("step ")
        assert all(f"{part} " in words for part in ("loss", "kd"))
        visit.page.mouse.move(0, 0)
        assert tip.count() == 0
        assert visit.faults == []


def test_the_button_turns_light_and_dark(browser: "Browser", runs: tuple[Path, Path]) -> None:
    with Visit(browser, runs[0] / "report.html", "phone", "dark") as visit:
        visit.page.locator("#theme").click()
        check_contrast(visit.page, dark=False)
        visit.page.locator("#theme").click()
        check_contrast(visit.page, dark=True)
        assert visit.faults == []


def test_links_lead_to_their_section(browser: "Browser", runs: tuple[Path, Path]) -> None:
    with Visit(browser, runs[0] / "report.html", "desk", "light") as visit:
        links = visit.page.locator("nav a")
        assert links.all_inner_texts()[:3] == [
            "Student against the simplest models",
            "Quality-efficiency index",
            "Training",
        ]
        links.nth(2).click()
        expect(visit.page.locator("#training h2")).to_be_in_viewport()


@pytest.mark.parametrize("size", SIZES)
def test_a_run_at_work(browser: "Browser", runs: tuple[Path, Path], size: str) -> None:
    with Visit(browser, runs[1] / "report.html", size, "light") as visit:
        assert visit.faults == []
        assert "It has got to step 2000." in visit.page.locator("main").inner_text()
        check_layout(visit.page, SIZES[size][0])
        check_charts(visit.page)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_a_comparison(browser: "Browser", runs: tuple[Path, Path], tmp_path: Path, size: str) -> None:
    third = tmp_path / "a run with a long name, and then some more of it" / "first"
    shutil.copytree(runs[0], third)
    write_comparison((*runs, third), tmp_path / "all.html")
    with Visit(browser, tmp_path / "all.html", size, "dark") as visit:
        assert visit.faults == []
        assert visit.asked() == []
        check_layout(visit.page, SIZES[size][0])
        assert visit.page.locator(".chart > svg").count() == 6
        assert visit.page.locator(".chart").first.locator("polyline").count() == 3
        check_charts(visit.page)
