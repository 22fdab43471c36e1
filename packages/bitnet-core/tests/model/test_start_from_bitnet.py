"""Ternary checkpoints of others start a student that says what transformers says of them."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, BitNetConfig, BitNetForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.integrations.bitnet import pack_weights

from bitnet_core.config.export import HFOptions
from bitnet_core.config.student import WEIGHT_QUANTISER_NAMES, StudentConfig
from bitnet_core.errors import CoreError
from bitnet_core.export.hf import hf_exporter
from bitnet_core.export.load_student import Student
from bitnet_core.model import BitNetKDEConfig, BitNetKDEForCausalLM, init_from
from bitnet_core.model.inference_copy import snapped
from bitnet_core.ternary.bitlinear import ternary_layers

IDS = torch.arange(3, 20)[None]
SHAPE: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "bitnet": (partial(BitNetConfig, tie_word_embeddings=True), BitNetForCausalLM),
}
KINDS = ("online", "offline dense", "offline packed", "bitlinear")


def ternary_checkpoint(
    folder: Path, kind: str, scale: float, dtype: torch.dtype = torch.float32, architecture: str = "llama", **shape: Any
) -> Path:
    """A random model in one of the formats of ``quant_method = "bitnet"``; `scale` is about its weights'.

    `architecture`: "llama", as Falcon-E, or "bitnet", as BitNet b1.58 2B4T (SubLN, squared ReLU, tied).
    """
    torch.manual_seed(0)
    config, kind_of_model = CONFIGS[architecture]
    model = kind_of_model(config(**(SHAPE | shape))).to(dtype)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.generation_config.eos_token_id = [2, 7]
    model.save_pretrained(folder)
    state: dict[str, Tensor] = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            state[name] = tensor
        elif kind == "online":
            state[name] = tensor * (scale / tensor.abs().mean())
        else:
            codes = (tensor / tensor.abs().mean()).round().clamp(-1, 1)
            state[name] = codes if "dense" in kind else pack_weights(codes)
            state[f"{name}_scale"] = torch.tensor([1 / scale if kind == "bitlinear" else scale], dtype=dtype)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    section = {
        "quant_method": "bitnet",
        "linear_class": "bitlinear" if kind == "bitlinear" else "autobitlinear",
        "quantization_mode": kind.split()[0] if kind != "bitlinear" else "offline",
        "modules_to_not_convert": ["lm_head"],
    }
    change_config(folder, quantization_config=section)
    return folder


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def transformers_logits(folder: Path) -> Tensor:
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        logits: Tensor = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(IDS).logits
    return logits


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    scale=st.floats(1e-3, 30.0),
    quantiser=st.sampled_from(WEIGHT_QUANTISER_NAMES),
    architecture=st.sampled_from(sorted(CONFIGS)),
)
def test_a_start_says_what_transformers_says(
    tmp_path_factory: pytest.TempPathFactory, kind: str, scale: float, quantiser: str, architecture: str
) -> None:
    folder = ternary_checkpoint(tmp_path_factory.mktemp("start"), kind, scale, architecture=architecture)
    expected, subln = transformers_logits(folder).log_softmax(-1), architecture == "bitnet"
    student = init_from(folder, StudentConfig(weight_quantiser=quantiser, sublayer_norm=subln)).eval()
    with torch.no_grad():
        found = student(IDS).logits.log_softmax(-1)
    # Another order of float32 operations, and so another rounding of activations, where they tie.
    assert float((expected.exp() * (expected - found)).sum(-1).mean()) < 1e-3
    assert student.generation_config.eos_token_id == [2, 7]
    dense = StudentConfig(quantise_weights=False, activation_bits=16, sublayer_norm=subln)
    control = dict(init_from(folder, dense).named_modules())
    for name, layer in ternary_layers(student):  # the full-precision control computes with the same numbers
        torch.testing.assert_close(control[name].weight, layer.quantised_weight(), rtol=2e-5, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_codes_and_scales_are_the_files(tmp_path: Path, kind: str) -> None:
    folder = ternary_checkpoint(tmp_path, kind, 0.0625, torch.float32 if kind == "online" else torch.bfloat16)
    stored = load_file(folder / "model.safetensors")
    for name, layer in ternary_layers(init_from(folder, StudentConfig())):
        weight = stored[f"{name}.weight"]
        if kind == "online":
            torch.testing.assert_close(layer.weight.detach(), weight, rtol=1e-6, atol=0)  # the master goes on
        torch.testing.assert_close(
            layer.row_log_scale().exp(), torch.full((len(layer.weight),), 0.0625), rtol=1e-6, atol=0
        )
        if kind == "online":
            codes = (weight / weight.abs().mean()).round().clamp(-1, 1)
        elif kind == "offline dense":
            codes = weight.float()
        else:
            codes = torch.cat([weight >> shift & 3 for shift in (0, 2, 4, 6)]).float() - 1
        assert torch.equal(layer.codes().float(), codes)


@pytest.mark.parametrize("sublayer_norm", [False, True])
def test_our_own_hf_export_starts_again(tmp_path: Path, sublayer_norm: bool) -> None:
    torch.manual_seed(0)
    model = BitNetKDEForCausalLM(BitNetKDEConfig(**SHAPE, sublayer_norm=sublayer_norm, tie_word_embeddings=True))
    student = Student(model=snapped(model), tokenizer=None, checkpoint=tmp_path, facts={"name": "x"})
    hf_exporter(HFOptions()).write(student, tmp_path)
    again = init_from(tmp_path / "hf", StudentConfig(sublayer_norm=sublayer_norm)).eval()
    for (_, ours), (_, theirs) in zip(ternary_layers(model), ternary_layers(again), strict=True):
        assert torch.equal(ours.codes(), theirs.codes())
        torch.testing.assert_close(theirs.log_scale.exp().half(), ours.log_scale.exp().half(), rtol=0, atol=0)
    torch.testing.assert_close(again(IDS).logits, student.model(IDS).logits, rtol=1e-5, atol=1e-5)
    if sublayer_norm:
        with pytest.raises(CoreError, match="has SubLN norms"):
            init_from(tmp_path / "hf", StudentConfig())


def test_a_scale_for_each_row_counts(tmp_path: Path) -> None:
    folder = ternary_checkpoint(tmp_path, "offline packed", 1.0)
    stored = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj"
    scales = stored[f"{name}.weight_scale"] = torch.linspace(0.5, 2, 48)[:, None]
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    layer = dict(ternary_layers(init_from(folder, StudentConfig())))[name]
    torch.testing.assert_close(layer.log_scale.exp(), scales.flatten())


def test_a_layer_that_is_not_ternary_is_fitted(tmp_path: Path) -> None:
    folder = ternary_checkpoint(tmp_path, "offline dense", 0.5)
    stored = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.down_proj"
    weight = stored[f"{name}.weight"] = torch.randn(32, 48)
    del stored[f"{name}.weight_scale"]
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    section = json.loads((folder / "config.json").read_text())["quantization_config"]
    change_config(
        folder, quantization_config=section | {"modules_to_not_convert": ["lm_head", "layers.0.mlp.down_proj"]}
    )
    layer = dict(ternary_layers(init_from(folder, StudentConfig())))[name]
    assert torch.equal(layer.weight, weight)
    assert 0.2 < float((layer.codes() == 0).float().mean()) < 0.6


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda state: {"weight": state["weight"] | 0xC0}, "its packed bytes hold codes beyond"),
        (lambda state: {"weight_scale": torch.ones(3)}, "weight_scale has 3 numbers"),
        (lambda state: {"weight_scale": torch.zeros(1)}, "weight_scale is not above 0"),
        (lambda state: {"weight": state["weight"][:2]}, r"is \[8, 32\], config.json says \[48, 32\]"),
    ],
)
def test_damage_is_named(tmp_path: Path, change: Any, why: str) -> None:
    folder = ternary_checkpoint(tmp_path, "offline packed", 1.0)
    stored, name = load_file(folder / "model.safetensors"), "model.layers.1.mlp.up_proj"
    now = {last: stored[f"{name}.{last}"] for last in ("weight", "weight_scale")}
    stored |= {f"{name}.{last}": value for last, value in change(now).items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CoreError, match=why):
        init_from(folder, StudentConfig())


def test_another_quantisation_is_refused_with_the_fix(tmp_path: Path) -> None:
    folder = ternary_checkpoint(tmp_path, "offline packed", 1.0)
    change_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(CoreError, match=r'quant_method "gptq".*→ name the unquantised checkpoint'):
        init_from(folder, StudentConfig())
