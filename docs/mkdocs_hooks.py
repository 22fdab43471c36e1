"""Hooks of the site: the navigation out of index.md, linked files of the repository, nothing from elsewhere.

A page that index.md does not list still gets a place, at the end, so that none is lost.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

DOCS = Path(__file__).parent
ROOT = DOCS.parent
ENTRY = re.compile(r"^- \[([^\]]+)\]\(([\w-]+\.md)\)", re.MULTILINE)
OUTSIDE = re.compile(r"\[([^\]]*)\]\(\.\./([^)#\s]+)(#[^)]*)?\)")
SHIM = "https://unpkg.com/iframe-worker/shim"
"""What the theme's offline plugin would load from elsewhere; docs/javascripts/ has it."""
PLACE = "repository"
"""The folder of the site that holds the linked files."""


def navigation() -> list[dict[str, Any]]:
    """index.md's sections and links, in mkdocs' form; pages that it leaves out under "More"."""
    sections = re.split(r"^## (.+)$", (DOCS / "index.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    nav: list[dict[str, Any]] = [{"Home": "index.md"}]
    for title, text in zip(sections[::2], sections[1::2], strict=True):
        nav.append({title: [{name: page} for name, page in ENTRY.findall(text)]})
    listed = {page for section in nav[1:] for entry in next(iter(section.values())) for page in entry.values()}
    more = sorted({path.name for path in DOCS.glob("*.md")} - listed - {"index.md"})
    return [*nav, {"More": more}] if more else nav


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    config.nav = navigation()
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Files beside docs/ that pages link to become part of the site."""
    wanted = {path for page in DOCS.glob("*.md") for _, path, _ in OUTSIDE.findall(page.read_text(encoding="utf-8"))}
    for path in sorted(wanted):
        if goes_along(path):
            content = (ROOT / path).read_bytes()
            files.append(File.generated(config, f"{PLACE}/{path}", content=content))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links out of docs/ lead to the copy; what has none (folders, other Markdown) is named as a path."""

    def lead(match: re.Match[str]) -> str:
        text, path, _ = match.groups()
        return f"[{text}]({PLACE}/{path})" if goes_along(path) else f"{text} (`{path}`)"

    return OUTSIDE.sub(lead, markdown)


def on_post_page(output: str, *, page: Page, config: MkDocsConfig) -> str:
    return output.replace(SHIM, "javascripts/iframe-worker.js")


def on_post_template(output: str, *, template_name: str, config: MkDocsConfig) -> str:
    return output.replace(SHIM, "/javascripts/iframe-worker.js")


def goes_along(path: str) -> bool:
    return (ROOT / path).is_file() and not path.endswith(".md")
