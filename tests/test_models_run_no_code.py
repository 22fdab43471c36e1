"""A model's folder never runs code: every loading says so, and one that brings code is refused without a question."""

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from bitnet_cli.main import cli
from bitnet_core.errors import CoreError
from bitnet_core.runtime.open import open_runtime
from bitnet_core.traces.tokenizer import load_tokenizer
from bitnet_core.training.intermediate_loss import _load_decoder
from bitnet_providers import ProviderError
from bitnet_providers.teachers.local.options import LocalTeacherConfig
from bitnet_providers.teachers.local.teacher import open_local

ROOT = Path(__file__).parents[1]
AUTO_MAP = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}


def loads() -> list[tuple[str, ast.Call]]:
    """Place → call, of every ``from_pretrained`` and every Auto class's ``from_config`` outside of tests."""
    found = []
    for file in (
        *ROOT.glob("packages/*/src/**/*.py"),
        *ROOT.glob("examples/**/*.py"),
        *ROOT.glob("benchmarks/**/*.py"),
    ):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                name, owner = node.func.attr, ast.unparse(node.func.value)
                if name == "from_pretrained" or (name == "from_config" and owner.startswith("Auto")):
                    found.append((f"{file.relative_to(ROOT)}:{node.lineno}", node))
    return found


def test_every_loading_says_that_no_code_runs() -> None:
    found = loads()
    assert len(found) > 15, "the walk finds the calls"
    for place, call in found:
        said = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert said.get("trust_remote_code") == "False", f"{place}: say trust_remote_code=False"


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes a model's folder whose config or tokenizer asks for the Python that lies beside it."""

    def make(*, model: bool) -> Path:
        tokenizer = Tokenizer(models.WordLevel({"tea": 0, "<unk>": 1}, unk_token="<unk>"))
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(tmp_path)
        code = f"open({str(tmp_path / 'it-ran')!r}, 'w').close()\nclass Config: pass\nclass Words: pass\n"
        (tmp_path / "code.py").write_text(code)
        config: dict[str, Any] = {"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2}
        (tmp_path / "config.json").write_text(
            json.dumps(config | ({"model_type": "own", "auto_map": AUTO_MAP} if model else {}))
        )
        (tmp_path / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
        if not model:
            settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
            settings |= {"tokenizer_class": "Words", "auto_map": {"AutoTokenizer": [None, "code.Words"]}}
            (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        return tmp_path

    return make


def open_it(place: Path) -> None:
    with open_runtime(place):
        pass


@pytest.mark.parametrize(
    ("load", "model"),
    [
        (open_it, True),
        (open_it, False),
        (load_tokenizer, False),
        (lambda place: _load_decoder(place, __import__("torch").float32), True),
        (lambda place: open_local(LocalTeacherConfig(model=str(place), device="cpu")), True),
        (lambda place: open_local(LocalTeacherConfig(model=str(place), device="cpu")), False),
    ],
)
def test_a_folder_that_brings_code_is_refused_without_a_question(
    folder: Callable[..., Path], load: Callable[[Path], Any], model: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda question="": pytest.fail(f"asked: {question}"))
    place = folder(model=model)
    with pytest.raises((CoreError, ProviderError), match="code out of a model's folder is never run"):
        load(place)
    assert not (place / "it-ran").exists()


def test_a_piped_yes_is_no_answer(folder: Callable[..., Path]) -> None:
    """transformers would read the first line of what is piped into `bitnet chat`."""
    place = folder(model=False)
    done = CliRunner().invoke(cli, ["chat", str(place)], input="y\ntea\n")
    assert done.exit_code == 2
    assert "never run" in done.output
    assert "[y/N]" not in done.output
    assert not (place / "it-ran").exists()
