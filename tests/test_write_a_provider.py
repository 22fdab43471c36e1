"""docs/write-a-provider.md leads to a plugin that passes the kit: its blocks are written to a folder and run."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from bitnet_providers.testing.faults import EXPECTED, Fault
from tiny_run import make_teacher

PAGE = Path(__file__).parents[1] / "docs" / "write-a-provider.md"
FILE = re.compile(r"^```\w+\n# (\S+\.(?:py|toml))\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a reader has at the end, installed as far as entry points go."""
    folder = tmp_path_factory.mktemp("provider")
    for name, content in FILE.findall(PAGE.read_text(encoding="utf-8")):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    (folder / "src/bitnet_provider_bigram/__init__.py").touch()
    (folder / "prompts.txt").write_text("Tell me a story.\n")
    info = folder / "src" / "bitnet_provider_bigram-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bitnet-provider-bigram\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[bitnet]\nbigram = bitnet_provider_bigram.plugin\n")
    return folder


def run(package: Path, *command: str, **variables: str) -> str:
    places = {"PYTHONPATH": str(package / "src"), "BITNET_CACHE": str(package / "cache")}
    done = subprocess.run(
        [sys.executable, *command], cwd=package, capture_output=True, text=True, check=False,
        env=os.environ | places | variables,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_has_every_file_of_the_package(package: Path) -> None:
    files = {path.relative_to(package).as_posix() for path in package.rglob("*") if path.suffix in (".py", ".toml")}
    plugin = {f"src/bitnet_provider_bigram/{name}.py" for name in ("__init__", "plugin", "teacher")}
    assert files == {"pyproject.toml", "bigram.toml", "train.toml", "tests/test_bigram.py", *plugin}


@pytest.mark.slow
def test_its_tests_pass(package: Path) -> None:
    output = run(package, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests")
    assert "18 passed, 7 skipped" in output  # it has no server to break


@pytest.mark.slow
def test_it_is_probed_and_collected_from(package: Path) -> None:
    bitnet = "from bitnet_cli.main import cli; cli()"
    assert "trusted for KD\n" in run(package, "-c", bitnet, "probe", "bigram.toml")
    assert "1 completions, 48 KD positions" in run(package, "-c", bitnet, "run", "bigram.toml")


@pytest.mark.slow
def test_a_student_is_trained_on_it(package: Path, tmp_path: Path) -> None:
    bitnet = "from bitnet_cli.main import cli; cli()"
    prompts = [f"And a {word}?\n" for word in ("cat", "dog", "river", "house", "tree", "star")]
    (package / "prompts.txt").write_text("Tell me a story.\n" + "".join(prompts))
    tokenizer = str(make_teacher(tmp_path / "tokenizer"))
    planned = run(package, "-c", bitnet, "plan", "train.toml", STUDENT_TOKENIZER=tokenizer)
    assert "collection: price: $0." in planned
    assert "Problems" not in planned
    done = run(package, "-c", bitnet, "run", "train.toml", STUDENT_TOKENIZER=tokenizer)
    assert "7 completions, 336 KD positions" in done
    assert "4 steps" in done


def test_every_fault_of_the_kit_is_in_its_table() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for fault in get_args(Fault):
        assert f'\n| `"{fault}"` |' in text
    assert f"Retry-After: {EXPECTED['rate limit'].retry_after_s:.0f}`" in text
