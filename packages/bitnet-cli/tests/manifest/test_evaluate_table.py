"""The section [evaluate]: its settings, benchmarks by name, options by table, the score that the index takes."""

from pathlib import Path
from typing import Any

import pytest
import tomli

from bitnet_cli.errors import UserError
from bitnet_cli.manifest import load_manifest, resolved_toml
from bitnet_cli.pipeline.fingerprint import manifest_slice
from bitnet_cli.plugins.catalog import Plugins
from bitnet_cli.plugins.load import load_plugins
from bitnet_core.config.evaluate import JSONValidityOptions, LMEvalOptions, NoOptions

TEXT = """
manifest_version = 1

[run]
name = "small"
stages = ["storage"]

[store]
kind = "local"
root = "runs"

"""
BOTH = '[evaluate]\nbenchmarks = ["heldout", "json_validity"]\n[evaluate.json_validity]\nprompts = "p.jsonl"\n'


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return load_plugins({})


def load(folder: Path, plugins: Plugins, section: str) -> Any:
    file = folder / "manifest.toml"
    file.write_text(TEXT + section)
    return load_manifest(file, (), plugins, {})


def problems(folder: Path, plugins: Plugins, section: str) -> list[str]:
    with pytest.raises(UserError) as error:
        load(folder, plugins, section)
    return list(map(str, error.value.problems))


def test_defaults(tmp_path: Path, plugins: Plugins) -> None:
    found = load(tmp_path, plugins, "[evaluate]\nmax_prompts = 3\n").evaluate
    assert found.settings.max_prompts == 3
    assert found.options == {"heldout": NoOptions(), "agreement": NoOptions()}


def test_a_prompts_file_is_relative_to_the_manifest(tmp_path: Path, plugins: Plugins) -> None:
    found = load(tmp_path, plugins, BOTH).evaluate
    assert found.options["json_validity"] == JSONValidityOptions(prompts=tmp_path / "p.jsonl")
    assert list(found.options) == ["heldout", "json_validity"]


def test_the_resolved_manifest_loads_back(tmp_path: Path, plugins: Plugins) -> None:
    manifest = load(tmp_path, plugins, BOTH)
    toml = resolved_toml(manifest)
    table = tomli.loads(toml)["evaluate"]
    assert table["json_validity"] == {"prompts": str(tmp_path / "p.jsonl"), "max_new_tokens": 128}
    assert "heldout" not in table
    (tmp_path / "again.toml").write_text(toml)
    assert load_manifest(tmp_path / "again.toml", (), plugins, {}) == manifest


def test_a_fingerprint_sees_settings_options_and_the_file(tmp_path: Path, plugins: Plugins) -> None:
    settings, files = manifest_slice(load(tmp_path, plugins, BOTH), ("evaluate",))
    assert settings["evaluate.benchmarks"] == ["heldout", "json_validity"]
    assert settings["evaluate.runtime"] == "torch"
    assert settings["evaluate.json_validity.max_new_tokens"] == 128
    assert files == {"evaluate.json_validity.prompts": tmp_path / "p.jsonl"}


def test_options_of_a_benchmark_left_out_are_checked_and_kept_back(tmp_path: Path, plugins: Plugins) -> None:
    found = load(tmp_path, plugins, "[evaluate]\n[evaluate.lm_eval]\nlimit = 4\n").evaluate
    assert set(found.options) == {"heldout", "agreement"}
    asked = load(tmp_path, plugins, '[evaluate]\nbenchmarks = ["lm_eval"]\n[evaluate.lm_eval]\nlimit = 4\n').evaluate
    assert asked.options == {"lm_eval": LMEvalOptions(limit=4)}
    assert problems(tmp_path, plugins, "[evaluate]\n[evaluate.lm_eval]\nlimit = 0\n")


@pytest.mark.parametrize(
    ("section", "said"),
    [
        (
            'benchmarks = ["json_validty"]\n',
            "there is no benchmark plugin 'json_validty'; did you mean 'json_validity'?",
        ),
        ("[evaluate.lm_evall]\nlimit = 3\n", "[evaluate.lm_evall]: there is no benchmark plugin"),
        ('benchmarks = ["json_validity"]\n', "evaluate.json_validity.prompts: missing"),
        ('benchmarks = ["heldout", "heldout"]\n', "names each benchmark once"),
        ("lm_eval = 3\n", "evaluate.lm_eval: expected a table, got 3"),
        ("max_promts = 3\n", 'evaluate.max_promts: unknown key  → did you mean "max_prompts"?'),
        ('runtime = "lamacpp"\n', 'did you mean "llamacpp"?'),
        ('qei_quality = "accuracy"\n', 'write "perplexity", or "benchmark.score"'),
        ('qei_quality = "json_validity.valid"\n', 'add "json_validity" to benchmarks'),
        ('qei_quality = "agreement.top"\n', 'agreement has no score "top"  → did you mean "top1"?'),
        ("[evaluate.lm_eval]\ntasks = []\n", "evaluate.lm_eval.tasks"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(tmp_path: Path, plugins: Plugins, section: str, said: str) -> None:
    found = problems(tmp_path, plugins, "[evaluate]\n" + section)
    assert any(said in problem for problem in found), found
