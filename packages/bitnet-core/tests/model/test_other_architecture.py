"""Students of other architectures: what starts one, what is refused, and that losses and exports see the same model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
)
from transformers.integrations.bitnet import AutoBitLinear

from bitnet_core import TopKOtherConfig, batch_from_topk, chunked_combined_loss, combined_loss
from bitnet_core.config.export import HFOptions, PackedOptions
from bitnet_core.config.student import TEACHERS, StudentConfig
from bitnet_core.config.train import TrainConfig
from bitnet_core.errors import CoreError
from bitnet_core.export.folder import export
from bitnet_core.export.hf import hf_exporter
from bitnet_core.export.packed import packed_exporter
from bitnet_core.model.find_layers_and_head import decoder, head, head_input, set_activation_bits
from bitnet_core.model.inference_copy import snapped
from bitnet_core.model.read_checkpoint import load_model
from bitnet_core.model.start_student import llama_shaped, start_student
from bitnet_core.model.ternarise import ternarise
from bitnet_core.ternary.bitlinear import ternary_layers
from bitnet_core.ternary.model_bytes import packed_bytes
from bitnet_core.ternary.packed_table import pack_table, unpack_table
from bitnet_core.traces.tokenizer_files import copy_tokenizer
from bitnet_core.training.optimizer import make_optimizer

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
IDS = torch.arange(3, 27)[None]


def neox() -> PreTrainedModel:
    torch.manual_seed(0)
    return GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES)).eval()


def saved(model: PreTrainedModel, folder: Path) -> StudentConfig:
    model.save_pretrained(folder)
    return StudentConfig(init_from=str(folder), architecture=TEACHERS)


def test_it_starts_from_a_checkpoint_and_from_a_student(tmp_path: Path) -> None:
    model = neox()
    student = start_student(saved(model, tmp_path / "dense"), None, 64)
    assert student.training
    assert len(list(ternary_layers(student))) == 8
    with torch.no_grad():
        next(ternary_layers(student))[1].log_scale += 1
    again = start_student(saved(student, tmp_path / "ternary"), None, 64)
    for name, tensor in student.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    frozen = start_student(
        StudentConfig(init_from=str(tmp_path / "dense"), architecture="gpt_neox", freeze_embeddings=True), None, 64
    )
    assert not head(frozen).weight.requires_grad
    assert next(ternary_layers(frozen))[1].weight.requires_grad


@pytest.mark.parametrize(
    "model",
    [
        lambda: Gemma2ForCausalLM(
            Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=8, final_logit_softcapping=3.0)
        ),
        lambda: PhiForCausalLM(PhiConfig(**SIZES)),
    ],
    ids=["a soft cap", "a bias"],
)
def test_logits_that_the_losses_do_not_fit_are_refused(model: Any, tmp_path: Path) -> None:
    made = model()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3)
    with pytest.raises(CoreError, match="not its head times its hidden states"):
        start_student(saved(made, tmp_path), None, 64)


def test_what_it_does_not_start_from(tmp_path: Path) -> None:
    config = saved(neox(), tmp_path)
    with pytest.raises(CoreError, match=r"its model_type is 'gpt_neox', not 'phi3'"):
        start_student(StudentConfig(init_from=str(tmp_path), architecture="phi3"), None, 64)
    with pytest.raises(CoreError, match="knows 64 tokens, the student's tokenizer has 65"):
        start_student(config, None, 65)
    with pytest.raises(CoreError, match=r"there is no config\.json"):
        start_student(StudentConfig(init_from=str(tmp_path / "no"), architecture=TEACHERS), None, 64)
    ternary = start_student(config, None, 64)
    ternary.save_pretrained(tmp_path / "ternary")
    other = StudentConfig(init_from=str(tmp_path / "ternary"), architecture=TEACHERS, weight_quantiser="seq")
    with pytest.raises(CoreError, match="was made ternary by lsq"):
        start_student(other, None, 64)
    with pytest.raises(CoreError, match="transformers' gpt_neox"):
        llama_shaped(ternary, "a GGUF file")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"init_from": ""}, "starts from a checkpoint"),
        ({"layers": (0, 1)}, "layers is for the architecture llama"),
        ({"hadamard": True}, "hadamard is for the architecture llama"),
        ({"sublayer_norm": True}, "sublayer_norm is for the architecture llama"),
        ({"quantise_weights": False}, "quantise_weights = false is for the architecture llama"),
        ({"architecture": "llama", "leave_out": ("*.o_proj",)}, "leave_out is for another architecture"),
    ],
)
def test_settings_that_it_has_not(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        StudentConfig(**({"architecture": "gpt_neox"} | settings))


def test_a_checkpoint_that_lacks_a_tensor_is_damaged(tmp_path: Path) -> None:
    model = neox()
    ternarise(model)
    state = model.state_dict()
    del state["gpt_neox.layers.0.mlp.dense_h_to_4h.log_scale"]
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(CoreError, match=r"other tensors than the model's: gpt_neox\.layers\.0\.mlp"):
        load_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CoreError):
        load_model(tmp_path)


def test_the_losses_see_the_logits_of_a_model_that_scales_them() -> None:
    torch.manual_seed(0)
    model = GraniteForCausalLM(GraniteConfig(**SIZES, num_key_value_heads=2, logits_scaling=4.0)).eval()
    ternarise(model)
    top = torch.randn(1, 24, 64).log_softmax(-1).topk(8)
    batch = batch_from_topk(IDS, top.indices, top.values)
    hidden_BTD = head_input(model, decoder(model)(input_ids=IDS).last_hidden_state)
    ours, _ = chunked_combined_loss(hidden_BTD, head(model).weight, batch, TopKOtherConfig(tau=1.3, ce_weight=0.1))
    theirs, _ = combined_loss(model(IDS).logits, batch, tau=1.3, ce_weight=0.1)
    torch.testing.assert_close(ours, theirs)


def test_the_optimizer_gives_scales_their_own_rate() -> None:
    model = neox()
    ternarise(model)
    groups = make_optimizer(model, TrainConfig(steps=1, weight_decay=0.1)).param_groups
    scales = {id(layer.log_scale) for _, layer in ternary_layers(model)}
    (found,) = [group for group in groups if {id(each) for each in group["params"]} == scales]
    assert found["peak_decay"] == 0.0


@pytest.mark.parametrize("kind", ["neox", "gpt2", "llama, tied"])
@torch.no_grad()
def test_the_inference_copy_holds_what_exports_hold(kind: str) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.2}
    model: Any = {
        "neox": neox,
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**sizes)),
        "llama, tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    }[kind]()
    model.eval()
    ternarise(model)
    copied = snapped(model)
    for _, layer in ternary_layers(model):
        scale_O = layer.log_scale.exp().half().float()
        layer.weight.copy_(layer.codes() * scale_O[:, None])
        layer.log_scale.copy_(scale_O.log())
    for name, parameter in model.named_parameters():
        if any(parameter is module.weight for module in (head(model), model.get_input_embeddings())):
            parameter.copy_(unpack_table(*pack_table(parameter)))
        elif parameter.dim() > 1 and name not in {f"{layer}.weight" for layer, _ in ternary_layers(model)}:
            parameter.copy_(parameter.half().float())
    for each in (model, copied):
        set_activation_bits(each, 16)
    torch.testing.assert_close(copied(IDS).logits, model(IDS).logits, rtol=0, atol=1e-5)
    assert packed_bytes(copied) == packed_bytes(model)


def test_a_model_of_ones_own_loop_is_exported(tokenizer_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**(SIZES | {"vocab_size": 512}))).eval()
    done = ternarise(model, leave_out=["*.1.mlp.*"])
    model.save_pretrained(tmp_path / "mine")
    copy_tokenizer(tokenizer_folder, tmp_path / "mine")
    report = export(tmp_path / "mine", {"hf": hf_exporter(HFOptions())}, tmp_path / "exports")
    assert report["exports"]["hf"]["architecture"] == "gpt_neox"
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "exports/hf")
    eight = {name for name, module in opened.named_modules() if isinstance(module, AutoBitLinear)}
    assert eight == set(done.ternary)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        ours, theirs = snapped(model)(IDS).logits, opened(IDS).logits
    torch.testing.assert_close(theirs, ours, rtol=0, atol=0.02 * float(ours.abs().max()))
    with pytest.raises(CoreError, match="the packed export is for the student of architecture 'llama'"):
        export(tmp_path / "mine", {"packed": packed_exporter(PackedOptions())}, tmp_path / "packed")
