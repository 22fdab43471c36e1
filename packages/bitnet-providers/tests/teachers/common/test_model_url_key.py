"""Keys, addresses and models by reference, and what `bitnet plan` hears of them without a network."""

import subprocess
import sys
from typing import Any

import attrs
import pytest

from bitnet_providers.contract import ProviderError
from bitnet_providers.plugin import HOSTED_TEACHERS
from bitnet_providers.teachers.anthropic.options import AnthropicTeacherConfig
from bitnet_providers.teachers.common.model_url_key import access_problems, missing_modules, resolve
from bitnet_providers.teachers.gemini.options import GeminiLegacyTeacherConfig, GeminiTeacherConfig

URL = "https://api.test"
KEY = "fake-canary-key"


def test_settings_come_before_the_variables_that_they_name() -> None:
    environ = {"ANTHROPIC_API_KEY": f" {KEY}\n", "ANTHROPIC_MODEL": "claude-env", "ANTHROPIC_BASE_URL": "http://env/v/"}
    written = resolve(AnthropicTeacherConfig(model="claude-set", base_url="http://set"), URL, environ)
    assert (written.model, written.base_url, written.api_key) == ("claude-set", "http://set", KEY)
    named = resolve(AnthropicTeacherConfig(), URL, environ)
    assert (named.model, named.base_url) == ("claude-env", "http://env/v")
    other = resolve(AnthropicTeacherConfig(model="m", api_key_env="TEAM_KEY"), URL, {"TEAM_KEY": "k2"})
    assert (other.base_url, other.api_key) == (URL, "k2")
    assert KEY not in repr(written)


@pytest.mark.parametrize(
    ("options", "environ", "words"),
    [
        ({}, {"GEMINI_API_KEY": KEY}, 'model: no model is named  → write model = "...", or put GEMINI_MODEL='),
        ({"model": "m"}, {}, "api_key_env: the environment variable GEMINI_API_KEY is not set"),
        ({"model": "m"}, {"GEMINI_API_KEY": " "}, "GEMINI_API_KEY is not set"),
        ({"model": "m"}, {"GEMINI_API_KEY": "two canaries"}, "holds no key"),
        ({"model": "m"}, {"GEMINI_API_KEY": "canary–dash"}, "holds no key"),
        ({"model": "m", "base_url": "api.canary.test"}, {"GEMINI_API_KEY": KEY}, "base_url: this is no address"),
        ({"model": "m", "base_url": "http://x:canary"}, {"GEMINI_API_KEY": KEY}, "base_url: this is no address"),
        ({"model": "m", "base_url": "https://u:canary@x.test"}, {"GEMINI_API_KEY": KEY}, "no user, password or query"),
        ({"model": "m"}, {"GEMINI_API_KEY": KEY, "GEMINI_BASE_URL": "x?canary"}, "base_url_env: GEMINI_BASE_URL: "),
    ],
)
def test_each_problem_is_told_with_its_fix_and_without_values(
    options: dict[str, Any], environ: dict[str, str], words: str
) -> None:
    config = GeminiTeacherConfig(**options)
    problem = str(*access_problems(config, URL, environ))
    assert words in problem
    assert "canar" not in problem
    with pytest.raises(ProviderError) as raised:
        resolve(config, URL, environ)
    assert str(raised.value) == f"teacher.{problem}"


@pytest.mark.parametrize("plugin", HOSTED_TEACHERS, ids=lambda plugin: plugin.name)
def test_each_plugin_checks_without_its_sdk_and_without_a_network(plugin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_MODEL", "GEMINI_API_KEY", "GEMINI_MODEL"):
        monkeypatch.delenv(name, raising=False)
    problems = plugin.check(plugin.options())
    assert [problem.why.split(":")[0] for problem in problems] == ["model", "api_key_env"]
    with pytest.raises(ProviderError, match=r"^teacher\.model: "):
        plugin.open(plugin.options())
    assert plugin.install == f"pip install 'bitnet-providers[{plugin.name}]'"
    assert plugin.capabilities.external


def test_listing_and_checking_import_no_sdk() -> None:
    code = (
        "import sys\n"
        "from bitnet_providers.plugin import bitnet_teachers\n"
        "for plugin in bitnet_teachers():\n"
        "    if plugin.name in ('anthropic', 'gemini', 'gemini-legacy'): plugin.check(plugin.options())\n"
        "sdks = ('anthropic', 'google.genai', 'google.generativeai', 'httpx2')\n"
        "print([name for name in sdks if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_a_missing_extra_is_told_with_its_install_line() -> None:
    (problem,) = missing_modules(("json", "no_such_package.module"), "pip install x")
    assert problem.why == "kind: the Python module no_such_package.module is not installed"
    assert problem.fix == "pip install x"
    assert missing_modules(("json", "google.genai"), "pip install x") == []


@pytest.mark.parametrize("config", [AnthropicTeacherConfig, GeminiTeacherConfig, GeminiLegacyTeacherConfig])
def test_every_setting_is_explained(config: type) -> None:
    for field in attrs.fields(config):
        assert field.metadata["help"], field.name


@pytest.mark.parametrize(
    "make",
    [
        lambda: AnthropicTeacherConfig(thinking="maybe"),
        lambda: AnthropicTeacherConfig(timeout_s=0.0),
        lambda: GeminiTeacherConfig(thinking_budget=-1),
    ],
)
def test_settings_out_of_range_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match=r"thinking|timeout_s"):
        make()
