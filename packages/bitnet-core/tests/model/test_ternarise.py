"""Any transformers model made ternary: with what people train, save, compile and generate with it, and back."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

from bitnet_core import restore_dense, ternarise
from bitnet_core.errors import CoreError
from bitnet_core.model.find_layers_and_head import activation_bits, set_activation_bits
from bitnet_core.ternary.activation_quantiser import activation_codes
from bitnet_core.ternary.bitlinear import quantised_once, ternary_layers

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GPT2: dict[str, Any] = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
IDS = torch.arange(3, 27)[None]


def neox() -> PreTrainedModel:
    torch.manual_seed(0)
    return GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES)).eval()


def gpt2() -> PreTrainedModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**GPT2, initializer_range=0.2, bos_token_id=1, eos_token_id=2)).eval()


def gemma3() -> PreTrainedModel:
    torch.manual_seed(0)
    more = {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8}
    return Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, **more)).eval()


@pytest.fixture(params=[neox, gpt2, gemma3])
def model(request: pytest.FixtureRequest) -> Any:
    return request.param()


def logits(model: PreTrainedModel, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(ids).logits
    return found


def test_a_layer_computes_with_codes_scales_and_8_bit_inputs() -> None:
    model = gpt2()
    linear: Any = model.transformer.h[0].attn.c_attn
    weight_IO, bias_O = linear.weight.detach().clone(), linear.bias.detach().clone()
    ternarise(model)
    layer: Any = model.transformer.h[0].attn.c_attn
    x_NI = torch.randn(5, 32)
    codes_NI, scale_N1 = activation_codes(x_NI, 8)
    scale_O = layer.log_scale.exp()
    codes_IO = (weight_IO / scale_O).round().clamp(-1, 1)
    torch.testing.assert_close(layer(x_NI), (codes_NI @ codes_IO) * scale_N1 * scale_O + bias_O)


def test_the_way_back_is_exact(model: PreTrainedModel) -> None:
    before, names = logits(model), set(model.state_dict())
    ternarise(model)
    assert not torch.allclose(logits(model), before)
    restore_dense(model)
    assert torch.equal(logits(model), before)
    assert set(model.state_dict()) == names
    assert getattr(model.config, "quantization_config", None) is None


def test_dense_weights_of_what_is_multiplied_with(model: PreTrainedModel) -> None:
    ternarise(model, activation_bits=16)
    ternary = logits(model)
    restore_dense(model, quantised=True)
    assert next(ternary_layers(model), None) is None
    torch.testing.assert_close(logits(model), ternary, rtol=0, atol=1e-4)


def test_saved_and_opened(model: PreTrainedModel, tmp_path: Path) -> None:
    ternarise(model, leave_out=["*.0.mlp.*"])
    set_activation_bits(model, 4)
    for _, layer in ternary_layers(model):
        layer.log_scale.data += 0.1 * torch.randn_like(layer.log_scale)
    model.save_pretrained(tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert activation_bits(opened) == 4
    assert torch.equal(logits(opened), logits(model))
    low = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    layer = next(ternary_layers(low))[1]
    assert (layer.weight.dtype, layer.log_scale.dtype) == (torch.bfloat16, torch.float32)
    opened.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert torch.equal(logits(again), logits(model))


def test_at_4_bits_only_what_a_norm_has_put_out_goes_below_8() -> None:
    model = neox()
    ternarise(model, activation_bits=4)
    bits = {name.split(".", 3)[3]: layer.input_quantiser.bits for name, layer in ternary_layers(model)}
    assert bits == {
        "attention.query_key_value": 4, "attention.dense": 8, "mlp.dense_h_to_4h": 4, "mlp.dense_4h_to_h": 8
    }  # fmt: skip


def test_left_out_by_pattern_and_named() -> None:
    model = neox()
    done = ternarise(model, leave_out=["*.attention.dense", "gpt_neox.layers.1.*"])
    assert done.left_out == (
        "gpt_neox.layers.0.attention.dense",
        *(f"gpt_neox.layers.1.{name}" for name in ("attention.query_key_value", "attention.dense")),
        *(f"gpt_neox.layers.1.mlp.{name}" for name in ("dense_h_to_4h", "dense_4h_to_h")),
    )
    assert {name for name, _ in ternary_layers(model)} == set(done.ternary)
    assert len(done.ternary) == 3


def test_refused() -> None:
    model = neox()
    with pytest.raises(CoreError, match=r"leave_out: '\*\.o_proj' fits no linear layer"):
        ternarise(model, leave_out=["*.o_proj"])
    ternarise(model)
    with pytest.raises(CoreError, match="quantised already"):
        ternarise(model)


def test_experts_in_one_tensor_are_left_out_or_refused() -> None:
    model = MixtralForCausalLM(MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=2))
    with pytest.raises(CoreError, match=r"mlp\.gate\.weight is in no linear layer") as refused:
        ternarise(model)
    assert refused.value.fix == "leave it out: leave_out = ['*.mlp.gate.weight']"
    done = ternarise(model, leave_out=["*.mlp.*"])
    assert len(done.ternary) == 8


def test_gradients_are_the_same_with_checkpoints(model: PreTrainedModel) -> None:
    ternarise(model)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        model(IDS, labels=IDS, use_cache=False).loss.backward()
        return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}

    plain = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again = gradients()
    assert plain.keys() == dict(model.named_parameters()).keys()
    assert any(name.endswith("log_scale") for name in plain)
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, msg=name)


@pytest.mark.slow
def test_compiled() -> None:
    model = gpt2()  # Conv1D and fused projections among its linears
    ternarise(model)
    compiled: Any = torch.compile(model, backend="aot_eager")
    model(IDS, labels=IDS).loss.backward()
    eager = {name: each.grad.clone() for name, each in model.named_parameters()}
    model.zero_grad()
    compiled(IDS, labels=IDS).loss.backward()
    for name, each in model.named_parameters():
        torch.testing.assert_close(each.grad, eager[name], msg=name)


def test_generates_as_it_reads(model: PreTrainedModel) -> None:
    ternarise(model)
    with quantised_once(model):
        made = model.generate(IDS, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
    following = logits(model, made)[0, len(IDS[0]) - 1 : -1]
    assert made.shape == (1, len(IDS[0]) + 8)
    assert torch.equal(following.argmax(-1), made[0, len(IDS[0]) :])


class Repeated(Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, _: int) -> dict[str, Tensor]:
        return {"input_ids": IDS[0], "labels": IDS[0]}


def arguments(folder: Path) -> TrainingArguments:
    return TrainingArguments(
        str(folder), max_steps=6, per_device_train_batch_size=2, learning_rate=0.01, report_to=[], save_steps=6,
        use_cpu=True, disable_tqdm=True,
    )  # fmt: skip


def test_trained_by_transformers_trainer_and_opened_from_its_checkpoint(tmp_path: Path) -> None:
    model = neox()
    ternarise(model)
    before = float(model(IDS, labels=IDS).loss.detach())
    scales = {name: layer.log_scale.detach().clone() for name, layer in ternary_layers(model)}
    Trainer(model=model, args=arguments(tmp_path), train_dataset=Repeated()).train()
    assert float(model.eval()(IDS, labels=IDS).loss.detach()) < before - 0.5
    assert all(not torch.equal(layer.log_scale, scales[name]) for name, layer in ternary_layers(model))
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-6")
    assert torch.equal(logits(opened), logits(model))


def test_prepared_and_saved_by_accelerate(tmp_path: Path) -> None:
    from accelerate import Accelerator

    model = gpt2()
    ternarise(model)
    accelerator = Accelerator(cpu=True)
    prepared, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.01))
    accelerator.backward(prepared(IDS, labels=IDS).loss)
    optimizer.step()
    accelerator.unwrap_model(prepared).save_pretrained(tmp_path, state_dict=accelerator.get_state_dict(prepared))
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model))


def test_adapters_of_peft_train_save_and_load(tmp_path: Path) -> None:
    import peft

    model = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    ternarise(model)
    model.save_pretrained(tmp_path / "base")
    adapted: Any = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    optimizer = torch.optim.AdamW([each for each in adapted.parameters() if each.requires_grad], lr=0.05)
    before = logits(adapted)
    for _ in range(2):
        adapted(IDS, labels=IDS).loss.backward()
        optimizer.step()
    assert not torch.allclose(logits(adapted), before)
    adapted.save_pretrained(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    again = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    assert torch.equal(logits(again), logits(adapted))
