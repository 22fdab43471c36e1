"""Where the project lives goes into its four wheels, written when they are published: a fork's point to the fork.

python .ci/urls.py https://HOST/OWNER/NAME
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def urls(home: str) -> str:
    """The ``[project.urls]`` table of a repository's page."""
    return f"""
[project.urls]
Homepage = "{home}"
Documentation = "{home}/blob/main/docs/index.md"
Changelog = "{home}/blob/main/CHANGELOG.md"
Issues = "{home}/issues"
"""


def write(root: Path, home: str) -> None:
    """Add them to each package's pyproject.toml."""
    for file in sorted(root.glob("packages/*/pyproject.toml")):
        text = file.read_text(encoding="utf-8")
        if "[project.urls]" in text:
            raise SystemExit(f"{file.relative_to(root)} has [project.urls] already")
        file.write_text(text + urls(home), encoding="utf-8")


if __name__ == "__main__":
    write(ROOT, sys.argv[1].rstrip("/"))
