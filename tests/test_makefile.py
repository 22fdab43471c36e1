"""`make` is an alias of the command line, and its table of names is true."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def make(*arguments: str, **environment: str) -> str:
    return subprocess.run(
        ["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=True, env=os.environ | environment
    ).stdout.strip()


def overrides() -> dict[str, str]:
    return dict(re.findall(r"([A-Z_]+):([a-z_0-9]+\.[a-z_0-9]+)", (ROOT / "Makefile").read_text()))


def test_overrides_become_settings() -> None:
    assert make("train", "TOTAL_STEPS=200", "KD_TAU=1.1") == (
        "uv run bitnet run manifests/quickstart.toml --set loss.tau=1.1 --set train.steps=200 --stages calibrate,train"
    )


def test_hyper_parameters_never_come_from_the_environment() -> None:
    assert make("train", TOTAL_STEPS="200") == "uv run bitnet run manifests/quickstart.toml --stages calibrate,train"


@pytest.mark.parametrize(
    "target", ["install", "ensure_dirs", "teacher", "collect", "train", "eval", "dryrun", "all", "test", "clean"]
)
def test_target(target: str) -> None:
    assert len(make(target).splitlines()) == 1


def test_docs_show_the_same_table() -> None:
    rows = dict(re.findall(r"\| `([A-Z_]+)` \| `([a-z_.0-9]+)` \|", (ROOT / "docs/make.md").read_text()))
    assert rows == overrides()


def test_every_name_is_a_key_of_the_manifest() -> None:
    import attrs

    from bitnet_cli.manifest.manifest import Manifest, RunConfig
    from bitnet_core.config.evaluate import EvaluateConfig
    from bitnet_core.config.loss import TopKOtherConfig
    from bitnet_core.config.train import TrainConfig
    from bitnet_providers import config as providers

    sections = {
        "run": RunConfig,
        "baseline": providers.BaselineConfig,
        "collect": providers.CollectConfig,
        "loss": TopKOtherConfig,
        "train": TrainConfig,
        "evaluate": EvaluateConfig,
    }
    assert {key.split(".")[0] for key in overrides().values()} <= {field.name for field in attrs.fields(Manifest)}
    for key in overrides().values():
        section, name = key.split(".")
        assert name in attrs.fields_dict(sections[section]), key
