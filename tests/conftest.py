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
