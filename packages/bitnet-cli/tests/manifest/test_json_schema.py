"""The JSON schema and the reference page say what the loader checks, and the shipped copies are up to date."""

import copy
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import attrs
import jsonschema
import pytest
import tomli
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_cli.errors import UserError
from bitnet_cli.manifest import load_manifest
from bitnet_cli.manifest.json_schema import manifest_schema, table_schema
from bitnet_cli.manifest.reference import reference
from bitnet_cli.manifest.toml_files import read_manifest
from bitnet_cli.plugins import catalog
from bitnet_cli.plugins.load import load_plugins

ROOT = Path(__file__).parents[4]
MANIFESTS = sorted((ROOT / "manifests").glob("*.toml"))
PLUGINS = load_plugins({})
SCHEMA = manifest_schema(PLUGINS, own_only=True)
VALIDATOR = jsonschema.Draft7Validator(SCHEMA)
BASE = tomli.loads((ROOT / "manifests/quickstart.toml").read_text(encoding="utf-8"))


def changed(path: str, value: Any) -> dict[str, Any]:
    """The quickstart's table with one key changed; a value of None takes it away."""
    table = copy.deepcopy(BASE)
    *folders, key = path.split(".")
    inner = table
    for folder in folders:
        inner = inner.setdefault(folder, {})
    if value is None:
        del inner[key]
    else:
        inner[key] = value
    return table


def loads(table: dict[str, Any]) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.toml"
        path.write_text(tomli_w.dumps(table), encoding="utf-8")
        try:
            load_manifest(path, (), PLUGINS, {})
        except UserError:
            return False
    return True


def test_it_is_a_schema() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    jsonschema.Draft202012Validator.check_schema(SCHEMA | {"$schema": "https://json-schema.org/draft/2020-12/schema"})


@pytest.mark.parametrize(
    ("made", "path"),
    [
        (json.dumps(SCHEMA, indent=2, ensure_ascii=False) + "\n", "manifests/manifest.schema.json"),
        (reference(SCHEMA), "docs/manifest.md"),
    ],
)
def test_the_committed_copy_is_todays(made: str, path: str) -> None:
    command = "schema" if path.endswith("json") else "reference"
    again = f"uv run bitnet manifests {command} --built-in > {path}"
    assert (ROOT / path).read_text(encoding="utf-8") == made, f"make it again: {again}"


def test_no_table_of_the_reference_stands_twice() -> None:
    """Two kinds may have a key or two in common; what is more stands once, and every kind leads there."""
    tables = [
        {line for line in section.splitlines() if line.startswith("| `")}
        for section in reference(SCHEMA).split("\n## ")[1:]
        for section in section.split("\n### ")
    ]
    assert max(len(one & other) for one, other in itertools.combinations(tables, 2)) <= 2
    page = reference(SCHEMA)
    for kind in ("openai", "aimlapi", "groq"):
        (text,) = re.findall(rf'### \[teacher\] kind = "{kind}"\n\n(.*)', page)
        assert "(#teacher-of-openai-aimlapi-openai-compatible-groq):" in text
    assert "Its keys are those of [\\[baseline.columns\\]](#baselinecolumns)." in page


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_every_shipped_manifest_is_valid(path: Path) -> None:
    VALIDATOR.validate(read_manifest(path, {}))  # with what it extends
    VALIDATOR.validate(tomli.loads(path.read_text(encoding="utf-8")))  # alone, as an editor sees it


def test_an_editor_finds_the_schema(tmp_path: Path) -> None:
    """Taplo (Even Better TOML) reads the `#:schema` line; it finds a wrong key, so it did read it."""
    taplo = Path(sys.executable).with_name("taplo")

    def lint(*paths: Path) -> subprocess.CompletedProcess[str]:
        command = [str(taplo), "lint", *map(str, paths)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)

    for path in (ROOT / "manifests").glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    good = lint(*tmp_path.glob("*.toml"))
    assert good.returncode == 0, good.stderr
    text = (tmp_path / "ci.toml").read_text(encoding="utf-8")
    (tmp_path / "ci.toml").write_text(text.replace("\nsteps = ", "\nstepz = "), encoding="utf-8")
    bad = lint(tmp_path / "ci.toml")
    assert bad.returncode != 0
    assert "'stepz' was unexpected" in bad.stderr


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("train.stepz", 3),
        ("trian", {"steps": 3}),
        ("train.steps", "3"),
        ("train.steps", 0),
        ("train.steps", True),
        ("train.beta2", 1.0),
        ("train.schedule", "cosin"),
        ("train.track", ["tensorbord"]),
        ("run.name", None),
        ("run.stages", ["trian"]),
        ("store.root", None),
        ("teacher.kind", "locale"),
        ("teacher.kind", "s3"),
        ("loss.kind", None),
        ("loss.temperature", 1.0),
        ("collect.budget.token", 3),
        ("collect.prices.models.big", {"input_per_million": "1"}),
        ("export.kinds", ["ggfu"]),
        ("export.gguf.types", ["tq3"]),
        ("evaluate.benchmarks", ["agrement"]),
        ("evaluate.json_validity", {"max_prompts": 3}),
        ("evaluate.lm_eval", {"task": ["hellaswag"]}),
        ("manifest_version", 2),
        ("manifest_version", None),
    ],
)
def test_what_is_wrong_is_refused_by_both(path: str, value: Any) -> None:
    table = changed(path, value)
    assert not VALIDATOR.is_valid(table)
    assert not loads(table)


def test_a_kind_brings_its_own_keys() -> None:
    hosted = changed("teacher", {"kind": "openai", "model": "x", "send_seed": False})
    assert VALIDATOR.is_valid(hosted)
    hosted["teacher"]["device"] = "cpu"  # the local teacher's
    assert not VALIDATOR.is_valid(hosted)


SECTION_KEYS = [
    (f"{name}.{key}", value)
    for name, section in SCHEMA["properties"].items()
    if name not in ("run", "dry_run") and "properties" in section
    for key, value in section["properties"].items()
    if value.get("type") != "object"
]
values = (
    st.booleans() | st.integers(-2, 3) | st.floats(-2, 2) | st.sampled_from(["", "auto", "x", "1/4", "adamw8bit"])
) | st.lists(st.integers(0, 2) | st.just("gguf"), max_size=2)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.sampled_from(SECTION_KEYS), values, st.data())
def test_the_loader_takes_nothing_that_the_schema_refuses(
    setting: tuple[str, dict[str, Any]], value: Any, data: st.DataObject
) -> None:
    path, schema = setting
    if "enum" in schema:
        value = data.draw(st.sampled_from(schema["enum"]) | st.just(value))
    table = changed(path, value)
    if loads(table):
        VALIDATOR.validate(table)


def test_an_installed_plugin_is_in_it_but_not_in_the_shipped_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "OWN_DISTRIBUTIONS", ("bitnet-core", "bitnet-storage"))

    def kinds(own_only: bool) -> list[str]:
        section = manifest_schema(PLUGINS, own_only)["properties"]["teacher"]
        return [each["title"] for each in section["anyOf"]]

    assert "openai" in kinds(own_only=False)
    assert kinds(own_only=True) == []


def test_a_file_that_extends_another_may_say_a_part_of_a_table() -> None:
    part = {"extends": "quickstart.toml", "evaluate": {"json_validity": {"max_prompts": 3}}, "store": {"work": "/w"}}
    assert VALIDATOR.is_valid(part)
    assert not VALIDATOR.is_valid(part | {"evaluate": {"json_validity": {"max_prompt": 3}}})


def test_each_shipped_manifest_names_it() -> None:
    for path in MANIFESTS:
        comments = path.read_text(encoding="utf-8").partition("\nmanifest_version")[0].partition("\nextends")[0]
        assert "#:schema manifest.schema.json" in comments.splitlines(), path


def test_any_attrs_type_gives_a_schema() -> None:
    @attrs.frozen
    class Options:
        """What a plugin's author wrote."""

        names: list[str]
        share: float | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.lt(1)))
        more: dict[str, Any] = attrs.field(factory=dict, metadata={"help": "anything"})

    assert table_schema(Options) == {
        "type": "object",
        "description": "What a plugin's author wrote.",
        "additionalProperties": False,
        "properties": {
            "names": {"type": "array", "items": {"type": "string"}},
            "share": {"type": "number", "exclusiveMaximum": 1},
            "more": {"type": "object", "additionalProperties": {}, "description": "anything"},
        },
        "required": ["names"],
    }


def test_the_reference_has_every_key_with_its_help() -> None:
    page = reference(SCHEMA)
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) > 150
    assert all(line.split(" | ")[-1].strip(" |") for line in rows), "a setting without help"
    assert "| `steps` | integer > 0 | `200` | optimizer steps |" in rows
    assert "| `root` | path | **required** | the folder that holds the runs, one folder each |" in rows


def test_the_command_prints_them() -> None:
    script = Path(sys.executable).with_name("bitnet")
    done = subprocess.run(
        [str(script), "manifests", "schema", "--built-in"], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    assert json.loads(done.stdout) == SCHEMA
