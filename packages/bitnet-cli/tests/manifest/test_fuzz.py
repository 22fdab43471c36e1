"""Whatever is written, the answer is a manifest or a clean error: never another exception, never a half manifest."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitnet_cli.errors import UserError
from bitnet_cli.manifest import Manifest, load_manifest, resolved_toml
from bitnet_cli.manifest.manifest import PLAIN_SECTIONS, SECTIONS
from bitnet_cli.manifest.stage_needs import STAGES
from bitnet_cli.plugins.catalog import Plugins

quick = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)

KEYS = sorted({field.name for cls in PLAIN_SECTIONS.values() for field in attrs.fields(cls)})
PLUGIN_KEYS = [
    "kind",
    "root",
    "cache_root",
    "model",
    "api_key_env",
    "mode",
    "stop",
    "adapter",
    "weights",
    "words",
    "tau",
]
WORDS = [
    "local",
    "hosted",
    "echo",
    "topk_other",
    "teacher",
    "auto",
    "${X}",
    "${HOME}/a",
    "${",
    "../up",
    "sk-0123456789abcdef",
]

# TOML holds no lone surrogates, and no integers beyond 64 bits (tomli reads them all the same: see the messages)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
names = st.sampled_from([*KEYS, *PLUGIN_KEYS]) | texts
scalars = (
    st.booleans()
    | st.integers(-3, 300)
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from([*WORDS, *STAGES])
    | texts
    | st.dates()
    | st.datetimes()
    | st.times()
)
values = st.recursive(
    scalars | st.lists(st.sampled_from(STAGES), unique=True),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=8,
)
tables = st.dictionaries(names, values, max_size=8)
documents = st.dictionaries(
    st.sampled_from([*SECTIONS, "manifest_version", "extends"]) | texts, tables | values, max_size=9
)

run_tables = st.fixed_dictionaries({"name": st.sampled_from(["a", "b-1"])}, optional={"seed": st.integers(0, 9)})
stores = st.fixed_dictionaries({"kind": st.just("local"), "root": st.sampled_from(["r", "/abs", "${X}/r"])})
nearly_right = st.fixed_dictionaries(
    {
        "manifest_version": st.just(1),
        "run": run_tables.map(lambda run: {**run, "stages": ["storage"]}),
        "store": stores,
    },
    optional={name: st.just({}) | tables for name in SECTIONS if name not in ("run", "store")},
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=tmp_path)) / "m.toml"


def check_problems(problems: Sequence[str]) -> None:
    assert problems
    for problem in problems:
        assert problem.isprintable(), problem
        assert "0123456789abcdef" not in problem  # a key is never shown


def load(file: Path, overrides: list[str], plugins: Plugins) -> Manifest | None:
    try:
        manifest = load_manifest(file, overrides, plugins, {"HOME": "/home/me", "X": "x"})
    except UserError as error:
        check_problems([str(problem) for problem in error.problems])
        return None
    file.write_text(resolved_toml(manifest), encoding="utf-8")
    assert load_manifest(file, [], plugins, {}) == manifest
    return manifest


@pytest.mark.slow
@quick
@given(documents)
def test_any_document(file: Path, plugins: Plugins, document: dict[str, Any]) -> None:
    file.write_text(tomli_w.dumps(document), encoding="utf-8")
    load(file, [], plugins)


@pytest.mark.slow
@quick
@given(nearly_right)
def test_a_nearly_right_document(file: Path, plugins: Plugins, document: dict[str, Any]) -> None:
    file.write_text(tomli_w.dumps(document), encoding="utf-8")
    manifest = load(file, [], plugins)
    if set(document) == {"manifest_version", "run", "store"}:
        assert manifest is not None


@quick
@given(st.binary(max_size=200) | texts.map(str.encode))
def test_any_bytes(file: Path, plugins: Plugins, data: bytes) -> None:
    file.write_bytes(data)
    assert load(file, [], plugins) is None


keys = st.lists(st.sampled_from([*SECTIONS, *KEYS, *PLUGIN_KEYS]), min_size=1, max_size=3).map(".".join)
literals = st.sampled_from(
    ['"x"', "1", "1.5", "true", "[1]", "{a = 1}", "[", '"', "nan", "abc", "", "sk-0123456789abcdef"]
)


@quick
@given(
    st.lists(
        st.text(max_size=20) | st.builds(lambda name, value: f"{name}={value}", keys, literals | st.text(max_size=9)),
        max_size=4,
    )
)
def test_any_set(file: Path, plugins: Plugins, small: str, overrides: list[str]) -> None:
    file.write_text(small, encoding="utf-8")
    load(file, overrides, plugins)
