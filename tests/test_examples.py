"""Every script of examples/ runs as a reader would run it, and does what it says."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitnet_cli import RunFailedError, UserError, run
from bitnet_cli.commands.run import run_command
from bitnet_cli.manifest import STAGES
from tiny_run import tiny_settings

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py"))


Load = Callable[[str], Any]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.syspath_prepend(str(EXAMPLES))  # as Python does for a script
    return importlib.import_module


def test_each_has_a_test_and_a_line_in_the_readme() -> None:
    own, readme = Path(__file__).read_text(encoding="utf-8"), (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for name in SCRIPTS:
        assert f'"{name}"' in own
        assert f"uv run python examples/{name}.py" in readme
        first = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8").partition("import ")[0]
        assert f"uv run python examples/{name}.py" in first


@pytest.mark.parametrize("script", sorted((EXAMPLES / "cluster").iterdir()), ids=lambda path: path.name)
def test_a_script_for_a_cluster_is_one(script: Path) -> None:
    """There is no Slurm here: bash reads it, and the commands of ours that it calls take these options."""
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"[{script.name}](cluster/{script.name})" in (EXAMPLES / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^bitnet (.+)$", script.read_text(encoding="utf-8"), re.MULTILINE)
    assert lines
    for line in lines:
        words = [word.replace("$MANIFEST", "my.toml") for word in shlex.split(line)]
        run_command.make_context("run", words[1:])
        assert words[0] == "run"
        stages = words[words.index("--stages") + 1].split(",") if "--stages" in words else []
        assert set(stages) <= set(STAGES)
    module = re.search(r"-m (\S+)", script.read_text(encoding="utf-8"))
    assert module is not None
    assert importlib.util.find_spec(module[1]) is not None


def test_the_loss_in_a_loop(load: Load) -> None:
    losses = load("kd_loss_in_a_loop").main(steps=20)
    assert losses[-1] < losses[0] / 3


def test_the_batch_of_the_loop_is_zero_at_identity(load: Load) -> None:
    """What the example makes of a teacher's logits is the teacher: against itself the KD term is nothing."""
    import torch

    from bitnet_core import combined_loss

    example = load("kd_loss_in_a_loop")
    teacher = example.tiny_llama(0, width=32).eval()
    ids = torch.randint(0, example.VOCABULARY, (3, 10), generator=torch.Generator().manual_seed(0))
    batch = example.kd_batch(teacher, ids, torch.ones_like(ids), prompt_length=2)
    with torch.no_grad():
        _, parts = combined_loss(teacher(input_ids=ids).logits, batch, tau=1.5)
    assert parts["kd_tokens"] == 3 * 8
    assert abs(parts["kd"].item()) < 1e-6


@pytest.mark.slow
def test_the_loss_in_trainer(load: Load) -> None:
    losses = load("kd_loss_in_trainer").main(steps=8)
    assert len(losses) == 8
    assert losses[-1] < 0.8 * losses[0]


def test_bitlinear_in_a_model(load: Load) -> None:
    from torch import nn

    from bitnet_core import BitLinear

    example = load("bitlinear_in_your_model")
    before, after = example.main(steps=80)
    assert after > 0.6 > before
    model = example.ternarise(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)), keep=("1",))
    assert isinstance(model[0][1], BitLinear)
    assert type(model[1]) is nn.Linear
    with pytest.raises(ValueError, match="no layer is called head"):
        example.ternarise(model, keep=("head",))


@pytest.mark.slow
def test_a_loop_of_ones_own_to_gguf(load: Load, tmp_path: Path) -> None:
    from bitnet_core.runtime.llamacpp.server import llama_cpp

    losses, said = load("own_loop_to_gguf").main(tmp_path)
    assert losses[-1] < losses[0] / 10
    assert said.startswith("he the")  # what mostly follows each byte
    with llama_cpp(tmp_path / "exports/student-tq2_0.gguf") as llama:
        assert llama.tokenize("the cat") == load("own_loop_to_gguf").byte_tokenizer()("the cat").input_ids


@pytest.mark.slow
def test_traces_to_tensors(load: Load, tiny_place: Path) -> None:
    batch = load("traces_to_tensors").main(str(tiny_place / "runs/quickstart/data"))
    assert batch["topk_ids"].shape == (*batch["input_ids"].shape, 8)
    assert batch["has_kd"].any()


@pytest.mark.slow
def test_a_whole_run(load: Load, tiny_place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = tiny_settings(tiny_place, tiny_place / "teacher") | {"run.seed": 0, "export.kinds": ["hf"]}
    figures = load("whole_run").main(tiny_place / "manifests/quickstart.toml", settings)
    shown = capsys.readouterr().out
    assert figures["heldout_kl"] > 0
    assert "train     skipped: done" in shown
    assert "The capital of France is" in shown


# bitnet_cli.run


@pytest.mark.slow
def test_what_fails_is_raised_with_the_fix(
    tiny_place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = tiny_place / "manifests/quickstart.toml"
    settings = tiny_settings(tmp_path, tiny_place / "nobody")
    with pytest.raises(RunFailedError, match="nobody") as caught:
        run(manifest, settings, quiet=True)
    assert "Then run: bitnet run" in str(caught.value)
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match='did you mean "steps"'):
        run(manifest, {"train.stepz": 3})
    with pytest.raises(UserError, match="a set can't stand in a manifest"):
        run(manifest, {"train.steps": {3}})


@pytest.mark.slow
def test_a_script_runs_by_itself() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "bitlinear_in_your_model.py")], capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONWARNINGS": "error::DeprecationWarning:__main__"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "trained" in done.stdout
