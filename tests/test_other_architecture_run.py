"""A whole run whose teacher and student are no Llamas: from `bitnet run` to a folder that transformers opens."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
)
from transformers.integrations.bitnet import AutoBitLinear

from bitnet_cli import UserError, run
from bitnet_core.export.check import check_exports
from bitnet_core.model.read_checkpoint import load_model, read_state
from bitnet_core.ternary.bitlinear import ternary_layers
from bitnet_core.training.setup import weights_sha256
from tiny_run import make_teacher, tiny_settings

ROOT = Path(__file__).parents[1]
STAGES = ["storage", "baseline", "collect", "project", "calibrate", "train", "evaluate", "export", "report"]
SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 512, "initializer_range": 0.1, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip


def teacher(kind: str, folder: Path) -> Path:
    make_teacher(folder)
    words = len(AutoTokenizer.from_pretrained(folder))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "gpt_neox":
            model: Any = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=words, **SIZES))
        elif kind == "gemma3_text":
            more = {"num_key_value_heads": 2, "head_dim": 16, "sliding_window": 16}
            model = Gemma3ForCausalLM(Gemma3TextConfig(vocab_size=words, **SIZES, **more))
        else:
            sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512, "initializer_range": 0.1}
            model = GPT2LMHeadModel(GPT2Config(vocab_size=words, bos_token_id=1, eos_token_id=2, **sizes))
    model.save_pretrained(folder)
    return folder


def settings(root: Path, kind: str) -> dict[str, Any]:
    return tiny_settings(root, teacher(kind, root / "teacher")) | {
        "run.stages": STAGES, "student.layers": [], "student.architecture": "teacher's", "calibration.tokens": 300,
        "export.kinds": ["hf"], "evaluate.runtime": "torch",
        "train.steps": 3, "train.checkpoint_every": 2, "train.learning_rate": 1e-4,
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt_neox", "gemma3_text", "gpt2"])
def test_from_a_run_to_a_folder_that_transformers_opens(kind: str, tmp_path: Path) -> None:
    folder = run(ROOT / "manifests/quickstart.toml", settings(tmp_path, kind))
    checkpoint = folder / "checkpoints/step_3"
    student = load_model(checkpoint)
    assert student.config.model_type == kind
    assert len(list(ternary_layers(student))) == {"gpt_neox": 8, "gemma3_text": 14, "gpt2": 8}[kind]
    began = read_state(checkpoint).start
    assert began == {"kind": "calibrated", "digest": weights_sha256(load_model(folder / "calibration/start"))}

    report = json.loads((folder / "reports/mini_evaluation_report.json").read_text())
    assert report["heldout_kl"] < report["unigram_kl"]
    assert report["generation"]["answers"]

    exported = folder / "exports/hf"
    opened, info = AutoModelForCausalLM.from_pretrained(exported, output_loading_info=True)
    assert opened.config.model_type == kind
    assert not info["missing_keys"] | info["unexpected_keys"]
    layers = sum(isinstance(module, AutoBitLinear) for module in opened.modules())
    assert layers == (0 if kind == "gpt2" else len(list(ternary_layers(student))))  # Conv1D is none of BitNet's
    for figure in check_exports(checkpoint, folder / "exports"):
        assert figure.passed, figure

    rows = (folder / "logs/metrics.jsonl").read_text().splitlines()
    again = run(ROOT / "manifests/quickstart.toml", settings(tmp_path, kind) | {"train.steps": 4})
    assert (again / "logs/metrics.jsonl").read_text().splitlines()[: len(rows)] == rows  # it went on
    assert read_state(folder / "checkpoints/step_4").step == 4


def test_what_cannot_be_is_said_before_time_is_spent(tmp_path: Path) -> None:
    wanted = settings(tmp_path, "gpt_neox")
    wanted |= {"export.kinds": ["gguf", "packed"], "train.packing": True, "evaluate.runtime": "packed"}
    with pytest.raises(UserError) as refused:
        run(ROOT / "manifests/quickstart.toml", wanted)
    told = str(refused.value)
    for what in ("the export gguf", "the export packed", "train.packing", 'evaluate.runtime = "packed"'):
        assert f'{what} is for students of architecture "llama"' in told
    assert not list((tmp_path / "runs/quickstart").glob("raw/*"))
    with pytest.raises(UserError, match=r"its model_type is 'gpt_neox', not 'gpt2'"):
        run(ROOT / "manifests/quickstart.toml", settings(tmp_path, "gpt_neox") | {"student.architecture": "gpt2"})
    with pytest.raises(UserError, match=r"""set student\.architecture = "teacher's", which takes any"""):
        run(ROOT / "manifests/quickstart.toml", settings(tmp_path, "gpt_neox") | {"student.architecture": "llama"})
