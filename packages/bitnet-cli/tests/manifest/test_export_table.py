"""The section [export]: plugins by name, options by table, and what a resolved manifest says of both."""

from pathlib import Path
from typing import Any

import attrs
import pytest
import tomli

from bitnet_cli.errors import UserError
from bitnet_cli.manifest import STAGES, load_manifest, resolved_toml
from bitnet_cli.pipeline.fingerprint import manifest_slice
from bitnet_cli.plugins.catalog import Plugins
from bitnet_cli.plugins.load import load_plugins
from bitnet_core.config.export import GGUFOptions, HFOptions

TEXT = """
manifest_version = 1

[run]
name = "small"
stages = ["storage", "export", "report"]

[store]
kind = "local"
root = "runs"

"""


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return load_plugins({})


def load(folder: Path, plugins: Plugins, section: str, text: str = TEXT) -> Any:
    file = folder / "manifest.toml"
    file.write_text(text + section)
    return load_manifest(file, (), plugins, {})


def problems(folder: Path, plugins: Plugins, section: str) -> list[str]:
    with pytest.raises(UserError) as error:
        load(folder, plugins, section)
    return list(map(str, error.value.problems))


def test_options_are_the_plugins_and_defaults_fill_them(tmp_path: Path, plugins: Plugins) -> None:
    manifest = load(tmp_path, plugins, '[export]\nkinds = ["gguf", "hf"]\n[export.gguf]\ntypes = ["f16"]\n')
    assert manifest.export.kinds == ("gguf", "hf")
    assert manifest.export.options == {"gguf": GGUFOptions(types=("f16",)), "hf": HFOptions()}


def test_the_resolved_manifest_loads_back(tmp_path: Path, plugins: Plugins) -> None:
    manifest = load(tmp_path, plugins, '[export]\nkinds = ["packed", "gguf"]\n')
    toml = resolved_toml(manifest)
    assert tomli.loads(toml)["export"] == {
        "kinds": ["packed", "gguf"], "gguf": {"types": ["tq2_0", "q2_0"]},
    }  # fmt: skip
    (tmp_path / "again.toml").write_text(toml)
    assert load_manifest(tmp_path / "again.toml", (), plugins, {}) == manifest


def test_a_fingerprint_sees_kinds_and_options(tmp_path: Path, plugins: Plugins) -> None:
    manifest = load(tmp_path, plugins, '[export]\nkinds = ["gguf"]\n')
    settings, files = manifest_slice(manifest, ("export",))
    assert settings == {"export.kinds": ["gguf"], "export.gguf.types": ["tq2_0", "q2_0"]}
    assert files == {}


def test_options_of_an_exporter_left_out_are_checked_and_kept_back(tmp_path: Path, plugins: Plugins) -> None:
    manifest = load(tmp_path, plugins, '[export]\nkinds = ["hf"]\n[export.gguf]\ntypes = ["f16"]\n')
    assert manifest.export.options == {"hf": HFOptions()}
    assert problems(tmp_path, plugins, '[export]\nkinds = ["hf"]\n[export.gguf]\ntypes = ["q4"]\n')


def test_who_describes_exports_and_names_no_stages_gets_them(tmp_path: Path, plugins: Plugins) -> None:
    sections = """
[run]
name = "small"
[store]
kind = "local"
root = "runs"
[teacher]
kind = "local"
[baseline]
prompts = "p.jsonl"
[collect]
prompts = "p.jsonl"
[project]
tokenizer = "teacher"
[student]
[loss]
kind = "topk_other"
[train]
[evaluate]
"""
    without = load(tmp_path, plugins, sections, "manifest_version = 1\n")
    assert "export" not in without.run.stages
    described = load(tmp_path, plugins, sections + '[export]\nkinds = ["hf"]\n', "manifest_version = 1\n")
    assert described.run.stages == tuple(stage for stage in STAGES if stage != "dry_run")
    assert attrs.evolve(described.run, stages=without.run.stages) == without.run


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("", '[export]: missing: the stage "export" needs it'),
        ("[export]\n", 'export.kinds: missing  → write kinds = ["..."] with some of: gguf, hf, packed'),
        ('[export]\nkinds = "hf"\n', "export.kinds: expected an array of strings"),
        ("[export]\nkinds = []\n", "export.kinds: is empty"),
        (
            '[export]\nkinds = ["hf", "hf"]\n',
            "or names an exporter twice  → name each exporter once",
        ),
        ('[export]\nkinds = ["ggfu"]\n', "there is no exporter plugin 'ggfu'; did you mean 'gguf'?"),
        ('[export]\nkinds = ["hf"]\nkind = "hf"\n', "export.kind: unknown key  → did you mean"),
        ('[export]\nkinds = ["hf"]\nhf = 3\n', "export.hf: expected a table, got 3"),
        ('[export]\nkinds = ["gguf"]\n[export.gguf]\ntypes = []\n', "export.gguf.types: types names each type once"),
        ('[export]\nkinds = ["hf"]\n[export.hf]\npush_to = "tea"\n', 'must be "user/name"'),
    ],
)
def test_what_is_wrong_is_told_with_its_place(tmp_path: Path, plugins: Plugins, section: str, said: str) -> None:
    found = problems(tmp_path, plugins, section)
    assert any(said in problem for problem in found), found
