"""The README's picture of a report: report.html on a desk in light, and on a phone in dark, as a browser shows it.

    uv run python -m benchmarks.report_picture runs/quickstart

writes docs/images/report.png, of the report that the run folder has. Needs a Chromium on this machine.
"""

import argparse
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw

from benchmarks.browser import MISSING, find_browser, open_browser

if TYPE_CHECKING:
    from playwright.sync_api import Browser

OUT = Path("docs/images/report.png")
HEIGHT, GAP, ROUND = 960, 36, 14
"""Pixels."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run folder with a report.html")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    page, browser_path = arguments.run / "report.html", find_browser()
    if not page.is_file():
        sys.exit(f"{page} is not there  → bitnet report {arguments.run}")
    if browser_path is None:
        sys.exit(MISSING)
    with open_browser(browser_path) as browser:
        desk = seen(browser, page, 1120, "light", "")
        phone = seen(browser, page, 390, "dark", "#training")
    picture = Image.new("RGBA", (desk.width + GAP + phone.width, HEIGHT))
    picture.paste(desk, (0, 0), desk)
    picture.paste(phone, (desk.width + GAP, 0), phone)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(arguments.out, optimize=True)
    print(f"{arguments.out}: {picture.width} × {picture.height}, {arguments.out.stat().st_size / 1e3:.0f} kB")


def seen(browser: "Browser", page: Path, width: int, scheme: Any, section: str) -> Image.Image:
    """What a window of `width` shows of the page, from `section` on; with round corners and a thin edge."""
    tab = browser.new_page(viewport={"width": width, "height": HEIGHT}, color_scheme=scheme)
    tab.goto(page.resolve().as_uri())
    if section:  # not by the address: the page scrolls smoothly
        tab.locator(section).evaluate("e => window.scrollTo({top: e.offsetTop - 40, behavior: 'instant'})")
    image = Image.open(io.BytesIO(tab.screenshot())).convert("RGBA")
    tab.close()
    mask = Image.new("L", image.size)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, width - 1, HEIGHT - 1), ROUND, fill=255)
    image.putalpha(mask)
    ImageDraw.Draw(image).rounded_rectangle((0, 0, width - 1, HEIGHT - 1), ROUND, outline="#9aa5b4")
    return image


if __name__ == "__main__":
    main()
