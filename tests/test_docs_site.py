"""The documentation site builds without a warning, lists every page, and loads nothing from elsewhere."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(path.stem for path in (ROOT / "docs").glob("*.md"))
LOADED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*?\ssrc=["']?([^"'\s>]+)|<link\b[^>]*?\shref=["']?([^"'\s>]+)"""
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In an environment of its own: the tools of the group `docs` are no part of the tests' own."""
    folder = tmp_path_factory.mktemp("site")
    command = ["uv", "run", "--isolated", "--locked", "--only-group", "docs", "mkdocs", "build", "--strict"]
    done = subprocess.run(
        [*command, "--quiet", "--site-dir", str(folder)], cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_every_page_is_there_and_in_the_navigation(site: Path) -> None:
    home = (site / "index.html").read_text(encoding="utf-8")
    for name in PAGES:
        assert (site / f"{name}.html").is_file()
        assert re.search(rf'<a href="?(\./)?{name}\.html', home), f"{name} is not in the navigation"


def test_every_page_is_in_the_index() -> None:
    """One that is missing is listed under "More"; say in docs/index.md what it is for."""
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    assert [name for name in PAGES if name != "index" and f"({name}.md)" not in index] == []


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        loaded = ["".join(match) for match in LOADED.findall(page.read_text(encoding="utf-8"))]
        assert len(loaded) > 3
        assert [url for url in loaded if re.match(r"(\w+:)?//", url)] == [], page.name
        for url in loaded if page.name != "404.html" else ():  # that one is for servers: absolute paths
            assert (page.parent / url.partition("?")[0].partition("#")[0]).exists(), f"{page.name}: {url}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )[\"']?https?:", sheet.read_text(encoding="utf-8")), sheet.name


def test_linked_files_go_along(site: Path) -> None:
    assert (site / "repository/manifests/colab.toml").read_bytes() == (ROOT / "manifests/colab.toml").read_bytes()
    assert 'href="repository/manifests/colab.toml"' in (site / "colab.html").read_text(encoding="utf-8")
    assert "examples/README.md" in (site / "python.html").read_text(encoding="utf-8")


def test_search_knows_the_pages(site: Path) -> None:
    index = (site / "search/search_index.js").read_text(encoding="utf-8")
    assert "student.weight_quantiser" in index
    assert "total variation" in index
