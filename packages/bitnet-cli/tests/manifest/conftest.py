"""Manifests of the tests: written to a folder, loaded with three small plugins of their own."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import attrs
import pytest

from bitnet_cli.errors import UserError
from bitnet_cli.manifest import Manifest, load_manifest
from bitnet_cli.plugins.catalog import Plugins
from bitnet_core.config.evaluate import NoOptions
from bitnet_core.hookspecs import BenchmarkPlugin, LossPlugin
from bitnet_providers.contract import Capabilities, TeacherPlugin
from bitnet_storage.config import LocalStoreConfig
from bitnet_storage.contract import StorePlugin


@attrs.frozen(kw_only=True)
class HostedOptions:
    model: str
    api_key_env: str = "HOSTED_API_KEY"
    mode: str = attrs.field(default="chat", validator=attrs.validators.in_(("chat", "completion")))
    stop: tuple[str, ...] = ()
    adapter: Path | None = attrs.field(default=None, metadata={"path": True})
    weights: str = attrs.field(default="built-in", metadata={"path": True})


@attrs.frozen(kw_only=True)
class LossOptions:
    tau: float = attrs.field(default=1.0, validator=attrs.validators.gt(0))


@attrs.frozen(kw_only=True)
class EchoOptions:
    words: int = 3


def _never(options: object) -> None:
    raise AssertionError("loading a manifest opens nothing")


CAPABILITIES = Capabilities(max_top_logprobs=20, token_ids=False, token_bytes=True, scoring=False, external=True)
PLUGINS = Plugins(
    teachers={
        "hosted": TeacherPlugin(name="hosted", options=HostedOptions, capabilities=CAPABILITIES, open=_never),  # type: ignore[arg-type]
        "echo": TeacherPlugin(name="echo", options=EchoOptions, capabilities=CAPABILITIES, open=_never),  # type: ignore[arg-type]
    },
    stores={"local": StorePlugin(name="local", options=LocalStoreConfig, open=_never)},  # type: ignore[arg-type]
    losses={"topk_other": LossPlugin(name="topk_other", options=LossOptions, load=_never)},  # type: ignore[arg-type]
    all=(),
    benchmarks={
        name: BenchmarkPlugin(name=name, options=NoOptions, load=_never)  # type: ignore[arg-type]
        for name in ("heldout", "agreement")
    },
)

SMALL = """
manifest_version = 1

[run]
name = "small"
stages = ["storage", "report"]

[store]
kind = "local"
root = "runs"
"""

WHOLE = """
manifest_version = 1

[run]
name = "whole"
seed = 7

[store]
kind = "local"
root = "../runs"
cache_root = "${CACHES:-../caches}"

[teacher]
kind = "hosted"
model = "big-1"
stop = ["\\n\\n", "END"]
adapter = "adapters/one"

[baseline]
prompts = "eval.jsonl"

[collect]
prompts = "prompts.jsonl"
temperature = 1

[project]

[student]

[loss]
kind = "topk_other"
tau = 1.3

[train]
steps = 20

[evaluate]
"""

Load = Callable[..., Manifest]
Problems = Callable[..., list[str]]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Write a manifest as ``<tmp_path>/m.toml`` and load it."""

    def load(text: str, overrides: Sequence[str] = (), env: Mapping[str, str] | None = None) -> Manifest:
        (tmp_path / "m.toml").write_text(textwrap.dedent(text), encoding="utf-8")
        return load_manifest(tmp_path / "m.toml", overrides, PLUGINS, env or {})

    return load


@pytest.fixture
def problems(load: Load, tmp_path: Path) -> Problems:
    """The problems of a manifest, with the temporary folder's name as ``DIR``."""

    def problems(text: str, overrides: Sequence[str] = (), env: Mapping[str, str] | None = None) -> list[str]:
        with pytest.raises(UserError) as caught:
            load(text, overrides, env)
        return [str(problem).replace(str(tmp_path), "DIR") for problem in caught.value.problems]

    return problems


@pytest.fixture
def plugins() -> Plugins:
    return PLUGINS


@pytest.fixture
def small() -> str:
    return SMALL


@pytest.fixture
def whole() -> str:
    return WHOLE
