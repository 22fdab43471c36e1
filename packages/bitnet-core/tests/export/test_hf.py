"""The folders as strangers open them: another process, without this package where it must not be needed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from safetensors.torch import load_file

from bitnet_core.config.export import HFOptions, PackedOptions
from bitnet_core.errors import CoreError
from bitnet_core.export.check import COST, ORDER, check_exports, kl
from bitnet_core.export.folder import export
from bitnet_core.export.hf import hf_exporter
from bitnet_core.export.packed import packed_exporter

OPEN = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert not any(name.startswith("bitnet_core") for name in sys.modules)
    messages = [{"role": "user", "content": "area of 12"}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        logits = model(inputs["input_ids"]).logits[0]
    answer = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0]
    print(json.dumps({
        "class": type(model).__name__, "layer": type(model.model.layers[0].mlp.up_proj).__name__,
        "head": type(model.lm_head).__name__, "prompt": inputs["input_ids"][0].tolist(), "logits": logits.tolist(),
        "generated": len(answer) - inputs["input_ids"].shape[1], "scale": getattr(
            model.model.layers[0].mlp.up_proj, "weight_scale", torch.zeros(1)).tolist(),
    }))
"""
A16 = "without activation quantisation"
CASES = [
    pytest.param({}, "LlamaForCausalLM", id="llama"),
    pytest.param({"sublayer_norm": True}, "BitNetForCausalLM", id="bitnet"),
    pytest.param(
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}, "LlamaForCausalLM", id="biases"
    ),
    pytest.param({"qkv_bias": True}, "Qwen2ForCausalLM", id="qwen2"),
    pytest.param({"qk_norm": True}, "Qwen3ForCausalLM", id="qwen3"),
]


@attrs.frozen
class Opened:
    checkpoint: Path
    exports: Path
    theirs: dict[str, Any]
    """What the other process found."""


@pytest.fixture(scope="module")
def opened(make_checkpoint: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Opened]:
    """By case: one process opens all, for it imports for seconds."""
    # A4 as trained: the export runs A8 all the same.
    cases = {case.id: {"activation_bits": 4, **case.values[0]} for case in CASES} | {A16: {"activation_bits": 16}}
    checkpoints = {name: make_checkpoint(**switches) for name, switches in cases.items()}
    exports = {name: tmp_path_factory.mktemp("exports") for name in cases}
    for name, checkpoint in checkpoints.items():
        export(checkpoint, {"hf": hf_exporter(HFOptions())}, exports[name])
    done = subprocess.run(
        [sys.executable, "-c", OPEN, *(str(folder / "hf") for folder in exports.values())],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"TORCHDYNAMO_DISABLE": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {name: Opened(checkpoints[name], exports[name], theirs) for name, theirs in zip(cases, lines, strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize(("switches", "name"), CASES)
def test_plain_transformers_opens_it_at_a8(
    request: pytest.FixtureRequest, opened: dict[str, Opened], switches: dict[str, Any], name: str
) -> None:
    from bitnet_core.export.load_student import load_student

    here = opened[request.node.callspec.id]
    theirs = here.theirs
    assert (theirs["class"], theirs["layer"], theirs["head"]) == (name, "AutoBitLinear", "Linear")
    assert theirs["scale"] == [1.0]
    assert theirs["generated"] == 4
    student = load_student(here.checkpoint)
    student.model.set_activation_bits(8)
    with torch.no_grad():
        ours = torch.log_softmax(student.model(torch.tensor([theirs["prompt"]])).logits[0].double(), -1)
    other = torch.log_softmax(torch.tensor(theirs["logits"]).double(), -1)
    figures = check_exports(here.checkpoint, here.exports)
    assert all(figure.passed for figure in figures)
    orders, cost = (next(each.value for each in figures if each.what == what) for what in (ORDER, COST))
    # A value at the border of two codes falls on either side: one in this text is a quarter of the cost.
    assert kl(ours.numpy(), other.numpy()) <= max(2 * orders, 0.5 * cost)
    student.model.set_activation_bits(16)
    with torch.no_grad():
        plain = torch.log_softmax(student.model(torch.tensor([theirs["prompt"]])).logits[0].double(), -1)
    assert kl(plain.numpy(), other.numpy()) > 1e-6  # it does quantise


@pytest.mark.slow
def test_without_activation_quantisation_it_is_plain_llama(opened: dict[str, Opened]) -> None:
    here = opened[A16]
    assert "quantization_config" not in json.loads((here.exports / "hf/config.json").read_text())
    assert load_file(here.exports / "hf/model.safetensors")["model.layers.0.mlp.up_proj.weight"].dtype == torch.float16
    assert here.theirs["layer"] == "Linear"
    assert all(figure.passed for figure in check_exports(here.checkpoint, here.exports))


@pytest.mark.parametrize("bits", [8, 4])
def test_the_packed_form_computes_the_same_through_the_auto_classes(
    make_checkpoint: Any, tmp_path: Path, bits: int
) -> None:
    checkpoint = make_checkpoint(activation_bits=bits)
    export(checkpoint, {"packed": packed_exporter(PackedOptions())}, tmp_path)
    figures = check_exports(checkpoint, tmp_path)
    assert all(figure.passed for figure in figures)
    assert [figure.value for figure in figures if figure.what == f"KL to the student, A{bits}"] == [0.0]
    tensors = load_file(tmp_path / "packed/model.safetensors")
    assert tensors["model.layers.0.mlp.up_proj.codes"].dtype == torch.uint8
    assert tensors["model.layers.0.mlp.up_proj.row_scale"].dtype == torch.float16


def test_the_check_finds_one_wrong_weight(checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    export(checkpoint, {"hf": hf_exporter(HFOptions())}, tmp_path)
    file = tmp_path / "hf/model.safetensors"
    tensors = load_file(file)
    weight = tensors["model.layers.1.self_attn.k_proj.weight"]
    weight[3, 5] = 0.0 if weight[3, 5] != 0 else weight[3].max()
    save_file(tensors, file, {"format": "pt"})
    wrong = [figure for figure in check_exports(checkpoint, tmp_path) if not figure.passed]
    assert any(figure.value == 1 and figure.what.startswith("codes that differ") for figure in wrong)


def test_the_card_has_the_runs_figures_and_the_teachers_terms(checkpoint: Path, tmp_path: Path) -> None:
    facts = {
        "name": "tea", "teacher": "smollm2-135m-instruct",
        "evaluation": {
            "activation_bits": 4, "heldout_kl": 3.147, "perplexity": 156.2,
            "heldout_at_8_bits": {"kl": 3.8698, "perplexity": 349.5, "top1_agreement": 0.177},
        },
    }  # fmt: skip
    export(checkpoint, {"hf": hf_exporter(HFOptions())}, tmp_path, facts=facts)
    card = (tmp_path / "hf/README.md").read_text()
    assert "# tea\n" in card
    assert "| KL to the teacher, nats a token | 3.87 | 3.147 |" in card
    assert "| top-1 agreement with the teacher | 0.177 | not measured |" in card
    assert "learned from what smollm2-135m-instruct said" in card
    assert "TORCHDYNAMO_DISABLE=1" in card


def test_subln_with_other_head_widths_is_refused(make_checkpoint: Any, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(sublayer_norm=True, head_dim=32)
    with pytest.raises(CoreError, match=r"4 × 32 = 128 is not 256"):
        export(checkpoint, {"hf": hf_exporter(HFOptions())}, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
