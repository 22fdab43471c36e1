"""Ternary models that others have published, in BitNet's format: exported with their codes and scales."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitNetConfig, BitNetForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.integrations.bitnet import pack_weights

from bitnet_core.config.export import GGUFOptions, HFOptions, PackedOptions
from bitnet_core.errors import CoreError
from bitnet_core.export.check import check_exports
from bitnet_core.export.folder import export
from bitnet_core.export.gguf.write import gguf_exporter
from bitnet_core.export.hf import hf_exporter
from bitnet_core.export.packed import packed_exporter
from bitnet_core.runtime.open import open_runtime
from bitnet_core.ternary.packed_linear import unpack_codes
from bitnet_core.traces.tokenizer_files import copy_tokenizer

SCALE = 0.078125  # bfloat16 and float16 have it
SHAPE: dict[str, Any] = {
    "vocab_size": 400, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def released(folder: Path, tokenizer: Path, kind: str) -> Path:
    """As Falcon-E's and BitNet b1.58 2B4T's files are: packed, autobitlinear, offline, a scale for each matrix."""
    torch.manual_seed(0)
    if kind == "2b4t":
        model: Any = BitNetForCausalLM(BitNetConfig(**SHAPE, tie_word_embeddings=True))
    else:
        model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.mul_(1 + 0.4 * torch.rand_like(parameter))
        model.model.norm.weight.mul_(6)
    model.save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    for name in [name for name in state if name.endswith("_proj.weight")]:
        codes = (state[name] / state[name].abs().mean()).round().clamp(-1, 1)
        state[name], state[f"{name}_scale"] = pack_weights(codes), torch.tensor([SCALE], dtype=torch.bfloat16)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    section = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"}
    set_in(folder, quantization_config=section | {"modules_to_not_convert": ["lm_head"]})
    copy_tokenizer(tokenizer, folder)
    return folder


def set_in(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture(params=["falcon-e", "2b4t"])
def model_folder(request: pytest.FixtureRequest, tmp_path: Path, tokenizer_folder: Path) -> Path:
    return released(tmp_path / request.param, tokenizer_folder, request.param)


def test_packed_holds_the_very_codes_and_scales(model_folder: Path, tmp_path: Path) -> None:
    export(model_folder, {"packed": packed_exporter(PackedOptions()), "hf": hf_exporter(HFOptions())}, tmp_path)
    stored, ours = (load_file(folder / "model.safetensors") for folder in (model_folder, tmp_path / "packed"))
    compared = 0
    for name in [name.removesuffix(".weight") for name in stored if name.endswith("_proj.weight")]:
        codes = torch.cat([stored[f"{name}.weight"] >> shift & 3 for shift in (0, 2, 4, 6)]).to(torch.int8) - 1
        assert torch.equal(unpack_codes(ours[f"{name}.codes"], codes.shape[1]).to(torch.int8), codes)
        assert (ours[f"{name}.row_scale"][(codes != 0).any(1)] == SCALE).all()
        compared += 1
    assert compared == 14
    assert [figure for figure in check_exports(model_folder, tmp_path) if not figure.passed] == []


def test_every_runtime_says_what_transformers_says(model_folder: Path, tmp_path: Path) -> None:
    export(model_folder, {"packed": packed_exporter(PackedOptions()), "hf": hf_exporter(HFOptions())}, tmp_path)
    ids = list(range(3, 40))
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        theirs = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()(torch.tensor([ids]))
        exported = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()(torch.tensor([ids]))
    expected = theirs.logits[0].log_softmax(-1)
    found = {"hf": exported.logits[0].log_softmax(-1)}
    for kind in ("torch", "packed"):
        with open_runtime(tmp_path / "packed", kind=kind, head="bf16") as runtime:
            found[kind] = runtime.logits(ids).log_softmax(-1)
    for kind, ours in found.items():
        distance = float((expected.exp() * (expected - ours)).sum(-1).mean())
        assert distance < (0.02 if kind == "packed" else 2e-3), kind  # bfloat16's head
    assert float((expected.exp() * (expected - expected[0])).sum(-1).mean()) > 0.1  # they say something


@pytest.mark.slow
def test_llama_cpp_computes_a_falcon_e(tmp_path: Path, tokenizer_folder: Path) -> None:
    folder = released(tmp_path / "falcon-e", tokenizer_folder, "falcon-e")
    export(folder, {"gguf": gguf_exporter(GGUFOptions(types=("q2_0", "f32")))}, tmp_path / "out")
    assert [figure for figure in check_exports(folder, tmp_path / "out", tokens=8) if not figure.passed] == []


def test_what_llama_cpp_would_compute_otherwise_is_refused(tmp_path: Path, tokenizer_folder: Path) -> None:
    folder = released(tmp_path / "2b4t", tokenizer_folder, "2b4t")
    with pytest.raises(CoreError, match=r"llama\.cpp's architecture bitnet has SiLU on its gates, not relu2"):
        export(folder, {"gguf": gguf_exporter(GGUFOptions())}, tmp_path / "out")


def test_a_layer_that_is_not_ternary_is_no_export(tmp_path: Path, tokenizer_folder: Path) -> None:
    folder = released(tmp_path / "mixed", tokenizer_folder, "falcon-e")
    state = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    state[name] = torch.randn(128, 192)
    del state[f"{name}_scale"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    section = json.loads((folder / "config.json").read_text())["quantization_config"]
    set_in(
        folder, quantization_config=section | {"modules_to_not_convert": ["lm_head", "model.layers.1.mlp.down_proj"]}
    )
    with pytest.raises(CoreError, match=r"model\.layers\.1\.mlp\.down_proj is not ternary"):
        export(folder, {"packed": packed_exporter(PackedOptions())}, tmp_path / "out")


def test_a_dense_model_is_no_export(tmp_path: Path, tokenizer_folder: Path) -> None:
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(tmp_path / "dense")
    copy_tokenizer(tokenizer_folder, tmp_path / "dense")
    with pytest.raises(CoreError, match=r"a llama model, not a student of this project .*, nor one in BitNet's format"):
        export(tmp_path / "dense", {"packed": packed_exporter(PackedOptions())}, tmp_path / "out")
