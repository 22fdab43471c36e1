"""A headless Chromium that is on this machine already, for tests and pictures of pages. Nothing is downloaded."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
MISSING = (
    f"no Chromium found: looked for {', '.join(NAMES)} on the PATH  → install one (Debian: apt-get install chromium), "
    "or name it with CHROMIUM=/path/to/it"
)


def find_browser() -> str | None:
    """CHROMIUM, else the first of `NAMES` on the PATH."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def open_browser(path: str) -> "Iterator[Browser]":
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # the sandbox needs privileges that containers seldom give; the pages shown are the tests' own
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()
