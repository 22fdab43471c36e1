"""The local teacher keeps the contract: the kit on a tiny random Llama."""

from pathlib import Path
from typing import Any

import pytest

from bitnet_providers.teachers.local.options import LocalTeacherConfig
from bitnet_providers.testing import TeacherConformance


class TestLocal(TeacherConformance):
    plugin_module = "bitnet_providers.plugin"
    plugin_name = "local"

    @pytest.fixture
    def options(self, tiny_folder: Path) -> Any:
        return LocalTeacherConfig(model=str(tiny_folder), device="cpu", dtype="fp32", batch_size=8)
