"""The bench of fake stages."""

from pathlib import Path

import pytest

from stage_bench import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(root=tmp_path / "runs")
