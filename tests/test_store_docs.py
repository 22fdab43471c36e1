"""docs/stores.md and docs/write-a-store.md do what they say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bitnet_cli.manifest import load_manifest
from bitnet_cli.plugins.load import load_plugins

ROOT = Path(__file__).parents[1]


def blocks(name: str, language: str) -> list[str]:
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", blocks("stores.md", "toml"), ids=lambda block: block.split("\n")[1])
def test_every_store_of_the_page_is_a_manifest(block: str, tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    path.write_text(f'manifest_version = 1\n[run]\nname = "docs"\nstages = ["storage"]\n{block}')
    loaded = load_manifest(path, [], load_plugins({}), {})
    assert loaded.store.kind in block


@pytest.mark.slow
def test_the_example_passes_the_kit(tmp_path: Path) -> None:
    (tmp_path / "test_sqlite.py").write_text("\n\n".join(blocks("write-a-store.md", "python")))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d\d passed", done.stdout)
