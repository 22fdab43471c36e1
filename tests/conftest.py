import os
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess, run

import pytest

ROOT = Path(__file__).parents[1]
os.environ["SKIP_EXTERNAL"] = "1"  # no test calls a paid or remote provider

Bitnet = Callable[..., "CompletedProcess[str]"]


@pytest.fixture(scope="session")
def bitnet() -> Bitnet:
    """Runs the command as a person would, from the repository's root; returns the finished process."""

    def call(*arguments: str, cwd: Path = ROOT, **environment: str) -> "CompletedProcess[str]":
        return run(
            [str(Path(sys.executable).with_name("bitnet")), *arguments],
            cwd=cwd,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | environment,
        )

    return call


@pytest.fixture(scope="session")
def tiny_place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``manifests/``, and ``runs/quickstart``: the quickstart with a tiny teacher, run from Python."""
    from bitnet_cli import run
    from tiny_run import make_teacher, tiny_settings

    place = tmp_path_factory.mktemp("place")
    (place / "manifests").symlink_to(ROOT / "manifests")
    settings = tiny_settings(place, make_teacher(place / "teacher"))
    assert run(ROOT / "manifests/quickstart.toml", settings) == place / "runs/quickstart"
    return place
