"""What the package promises to whoever imports it."""

import inspect
import pydoc
import re
import subprocess
import sys
from functools import partial
from pkgutil import resolve_name

import attrs
import pytest

import bitnet_providers
from bitnet_providers import contract
from bitnet_providers.config import BaselineConfig, CollectConfig
from bitnet_providers.plugin import bitnet_teachers
from bitnet_providers.teachers.local.options import LocalTeacherConfig


@pytest.mark.slow
@pytest.mark.parametrize("module", ["bitnet_providers", "bitnet_providers.plugin", "bitnet_providers.config"])
def test_listing_teachers_imports_nothing_heavy(module: str) -> None:
    code = (
        f"import sys, {module}\n"
        "from bitnet_providers.plugin import bitnet_teachers\n"
        "from bitnet_providers.teachers.local.options import LocalTeacherConfig\n"
        "plugin = next(each for each in bitnet_teachers() if each.name == 'local')\n"
        "plugin.check(LocalTeacherConfig(model='nowhere'))\n"
        "print([name for name in ('torch', 'transformers', 'pyarrow', 'gguf') if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_every_exported_name_is_there() -> None:
    for name in bitnet_providers.__all__:
        assert getattr(bitnet_providers, name) is not None
    assert dir(bitnet_providers) == sorted(bitnet_providers.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = bitnet_providers.nothing


def test_every_lazy_function_is_there() -> None:
    for teacher in bitnet_teachers():
        assert isinstance(teacher.open, partial)
        assert callable(resolve_name(teacher.open.args[0]))


PATHS = ("prompts", "texts", "test_prompts", "test_texts", "model", "chat_template")


@pytest.mark.parametrize("config", [BaselineConfig, CollectConfig, LocalTeacherConfig])
def test_every_setting_is_explained(config: type) -> None:
    for field in attrs.fields(config):
        assert field.metadata["help"], field.name
        assert field.metadata["path"] == (field.name in PATHS), field.name


@pytest.mark.parametrize(
    "wrong",
    [{"top_p": 0.0}, {"top_p": 1.1}, {"temperature": -1.0}, {"top_k": -1}, {"concurrency": 0}, {"max_text_tokens": 1}],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CollectConfig(**wrong)


def test_the_local_plugin_says_what_it_needs() -> None:
    plugin = next(each for each in bitnet_teachers() if each.name == "local")
    assert plugin.options is LocalTeacherConfig
    assert plugin.install == "pip install 'bitnet-providers[local]'"
    assert "torch" in plugin.requires
    assert not plugin.capabilities.external


def test_pydoc_of_the_contract_tells_every_field() -> None:
    page = pydoc.plain(pydoc.render_doc(contract))
    classes = [each for name in contract.__all__ if attrs.has(each := getattr(contract, name))]
    assert len(classes) == 8
    for each in classes:
        said = inspect.getdoc(each) or ""
        assert re.findall(r"^(\w+): ", said, re.MULTILINE) == [field.name for field in attrs.fields(each)]
        assert all(line in page for line in said.splitlines())
