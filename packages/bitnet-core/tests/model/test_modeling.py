"""The student as a transformers model: equal to Llama without quantisers, masks, cache, saving, gradients."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from bitnet_core.model import BitNetKDEConfig, BitNetKDEForCausalLM, dense_bytes, packed_bytes
from bitnet_core.model.kv_cache import cache_of
from bitnet_core.model.modeling import positions_of
from bitnet_core.ternary.bitlinear import ternary_layers

SHAPE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,  # logits of some size, so that differences show
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}


def make_model(seed: int = 0, **changes: Any) -> BitNetKDEForCausalLM:
    torch.manual_seed(seed)
    return BitNetKDEForCausalLM(BitNetKDEConfig(**{**SHAPE, **changes})).eval()


def token_ids(seed: int, *shape: int) -> torch.Tensor:
    return torch.randint(3, 61, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 50000.0},
        {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ],
)
def test_without_quantisers_it_is_llama(tied: bool, rope: dict[str, Any]) -> None:
    shape = {**SHAPE, "tie_word_embeddings": tied, "rope_parameters": rope, "head_dim": 16}
    torch.manual_seed(3)
    llama = LlamaForCausalLM(LlamaConfig(**shape)).eval()
    model = BitNetKDEForCausalLM(BitNetKDEConfig(**shape, quantise_weights=False, activation_bits=16)).eval()
    missing, unexpected = model.load_state_dict(llama.state_dict(), strict=True)
    assert not missing
    assert not unexpected
    ids = token_ids(0, 3, 20)
    mask = torch.ones(3, 20, dtype=torch.long)
    mask[1, 14:] = 0
    ours, theirs = model(ids, attention_mask=mask), llama(ids, attention_mask=mask)
    real = mask.bool()
    torch.testing.assert_close(ours.logits[real], theirs.logits[real], rtol=0, atol=1e-5)
    labels = ids.masked_fill(~real, -100)
    torch.testing.assert_close(
        model(ids, attention_mask=mask, labels=labels).loss, llama(ids, attention_mask=mask, labels=labels).loss
    )


@pytest.mark.parametrize(
    ("theirs", "switches"),
    [
        (LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True), {"attention_bias": True, "mlp_bias": True}),
        (MistralConfig(**SHAPE, sliding_window=None), {}),
        (Qwen2Config(**SHAPE), {"qkv_bias": True}),
        (Qwen3Config(**SHAPE, head_dim=24), {"qk_norm": True, "head_dim": 24}),
        (Qwen3Config(**SHAPE, attention_bias=True), {"qk_norm": True, "attention_bias": True, "head_dim": 128}),
    ],
    ids=["llama-biases", "mistral", "qwen2", "qwen3", "qwen3-biases"],
)
def test_without_quantisers_it_is_its_cousin(theirs: Any, switches: dict[str, Any]) -> None:
    torch.manual_seed(5)
    cousin = AutoModelForCausalLM.from_config(theirs).eval()
    for parameter in cousin.parameters():  # norms and biases start at 1 and 0, which hides mistakes
        torch.nn.init.normal_(parameter, std=0.2)
    shape = SHAPE | {"rms_norm_eps": theirs.rms_norm_eps, "rope_parameters": theirs.rope_parameters} | switches
    model = BitNetKDEForCausalLM(BitNetKDEConfig(**shape, quantise_weights=False, activation_bits=16)).eval()
    model.load_state_dict(cousin.state_dict(), strict=True)
    ids = token_ids(6, 2, 20)
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[1, 14:] = 0
    difference = model(ids, attention_mask=mask).logits - cousin(ids, attention_mask=mask).logits
    assert difference[mask.bool()].abs().max() <= 1e-5


def test_parameter_names_are_llamas_and_the_scales() -> None:
    llama = set(LlamaForCausalLM(LlamaConfig(**SHAPE)).state_dict())
    ours = set(make_model().state_dict())
    assert llama <= ours
    assert all(name.endswith("_proj.log_scale") for name in ours - llama)
    assert len(ours - llama) == 7 * 2
    norms = set(make_model(sublayer_norm=True).state_dict()) - ours
    assert norms == {
        f"model.layers.{layer}.{name}.weight"
        for layer in (0, 1)
        for name in ("self_attn.attn_sub_norm", "mlp.ffn_sub_norm")
    }


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_padding_left_right_and_none_agree(bits: int) -> None:
    model = make_model(activation_bits=bits)
    ids = token_ids(1, 1, 7)
    padding = torch.full((1, 4), 2)
    alone = model(ids).logits
    right = model(torch.cat([ids, padding], 1), attention_mask=torch.tensor([[True] * 7 + [False] * 4])).logits[:, :7]
    left = model(torch.cat([padding, ids], 1), attention_mask=torch.tensor([[False] * 4 + [True] * 7])).logits[:, 4:]
    # Rounding ties may fall either way after another order of summation; these seeds have none.
    torch.testing.assert_close(right, alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(left, alone, rtol=1e-4, atol=1e-4)


def test_padding_is_harmless_to_gradients() -> None:
    """Left-padded rows attend to nothing: no NaN, and the same gradients as without padding."""
    gradients = []
    for pad in (0, 5):
        model = make_model().train()
        ids = torch.cat([torch.full((2, pad), 2), token_ids(2, 2, 6)], 1)
        mask = torch.cat([torch.zeros(2, pad, dtype=torch.bool), torch.ones(2, 6, dtype=torch.bool)], 1)
        model(ids, attention_mask=mask).logits[:, pad:].square().mean().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for without, with_padding in zip(*gradients, strict=True):
        torch.testing.assert_close(with_padding, without, rtol=1e-3, atol=1e-5)


def test_is_causal() -> None:
    model = make_model()
    ids = token_ids(3, 1, 12)
    changed = ids.clone()
    changed[0, 8] = (changed[0, 8] - 3 + 1) % 58 + 3
    before, after = model(ids).logits, model(changed).logits
    torch.testing.assert_close(after[:, :8], before[:, :8], rtol=0, atol=0)
    assert not torch.allclose(after[:, 8:], before[:, 8:])


def test_positions_count_tokens_only() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    assert positions_of(mask, 5, 0, mask.device).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2]]
    assert positions_of(mask[:1], 1, 4, mask.device).tolist() == [[2]]
    assert positions_of(None, 2, 3, mask.device).tolist() == [[3, 4]]


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_cache_step_by_step_equals_one_pass(bits: int, name: str) -> None:
    """By the name that transformers had for it, and by the one that it has since 5.24."""
    model = make_model(activation_bits=bits)
    ids = token_ids(4, 2, 9)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, :3] = False
    whole = model(ids, attention_mask=mask, use_cache=False)
    assert cache_of(whole) is None
    cache, steps = None, []
    for end in range(1, 10):
        out = model(ids[:, end - 1 : end], attention_mask=mask[:, :end], use_cache=True, **{name: cache})
        cache = cache_of(out)
        steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, 1)[mask], whole.logits[mask], rtol=1e-4, atol=1e-4)


def test_the_cache_is_given_once() -> None:
    model, one, other = make_model(), DynamicCache(), DynamicCache()
    with pytest.raises(ValueError, match="give the cache once"):
        model(token_ids(4, 1, 3), cache=one, past_key_values=other)
    model(token_ids(4, 1, 3), cache=one, past_key_values=one)
    assert one.get_seq_length() == 3


def test_generate_with_and_without_cache_and_padding() -> None:
    model = make_model()
    short, long = token_ids(5, 1, 4), token_ids(6, 1, 7)
    alone = [model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None) for ids in (short, long)]
    batch = torch.cat([torch.cat([torch.full((1, 3), 2), short], 1), long])
    mask = torch.ones_like(batch)
    mask[0, :3] = 0
    for use_cache in (True, False):
        out = model.generate(
            batch, attention_mask=mask, max_new_tokens=6, do_sample=False, use_cache=use_cache, eos_token_id=None
        )
        assert out[0, 7:].tolist() == alone[0][0, 4:].tolist()
        assert out[1, 7:].tolist() == alone[1][0, 7:].tolist()
    assert all(layer._held_weight is None for _, layer in ternary_layers(model))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("sublayer_norm", [True, False])
def test_saved_and_loaded_it_is_the_same(tmp_path: Path, tied: bool, sublayer_norm: bool) -> None:
    model = make_model(tie_word_embeddings=tied, sublayer_norm=sublayer_norm)
    with torch.no_grad():
        for parameter in model.parameters():  # nothing must come from a fresh start
            parameter.add_(0.01 * torch.randn_like(parameter))
    model.set_activation_bits(4)
    model.save_pretrained(tmp_path)
    assert [path.suffix for path in tmp_path.glob("model*")] == [".safetensors"]
    assert AutoConfig.from_pretrained(tmp_path).model_type == "bitnet_kde"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert isinstance(loaded, BitNetKDEForCausalLM)
    assert loaded.config.activation_bits == 4
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    ids = token_ids(7, 2, 8)
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=0, atol=0)


def test_scales_stay_in_float32_when_loaded_in_bfloat16(tmp_path: Path) -> None:
    model = make_model()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for (_, ours), (_, theirs) in zip(ternary_layers(model), ternary_layers(loaded), strict=True):
        assert theirs.weight.dtype == torch.bfloat16
        assert torch.equal(ours.log_scale, theirs.log_scale)
    assert torch.isfinite(loaded(token_ids(8, 1, 5)).logits).all()


def test_the_flip_changes_q_k_v_gate_up_inputs_only() -> None:
    model = make_model()
    ids = token_ids(9, 2, 10)
    at = {}
    for bits in (16, 8, 4, 8):
        model.set_activation_bits(bits)
        assert model.config.activation_bits == bits
        logits = model(ids).logits.detach()
        assert bits not in at or torch.equal(at[bits], logits)  # back again is the same
        at[bits] = logits
    error_8, error_4 = ((at[bits] - at[16]).square().mean() for bits in (8, 4))
    assert 0 < error_8 < error_4 / 10
    model.set_activation_bits(4)
    for layer in model.model.layers:
        assert (layer.self_attn.input_quantiser.bits, layer.self_attn.output_quantiser.bits) == (4, 8)
        assert (layer.mlp.input_quantiser.bits, layer.mlp.output_quantiser.bits) == (4, 8)


def test_each_input_is_quantised_once() -> None:
    model = make_model()
    calls: list[str] = []
    for name, module in model.named_modules():
        if name.endswith("_quantiser"):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    model(token_ids(10, 1, 4))
    assert len(calls) == len(set(calls)) == 4 * 2


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("bits", [8, 4])
def test_gradients_reach_every_parameter(bits: int, autocast: bool) -> None:
    model = make_model(activation_bits=bits, sublayer_norm=True, tie_word_embeddings=False).train()
    ids = token_ids(11, 2, 12)
    mask = torch.ones(2, 12, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        hidden = model.model(ids, attention_mask=mask)
        logits = model.lm_head(hidden.last_hidden_state)
    assert cache_of(hidden) is None  # no cache is built in training
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32, name
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_autocast_is_near_full_precision() -> None:
    model = make_model()
    ids = token_ids(12, 2, 10)
    full = model(ids).logits
    with torch.autocast("cpu", torch.bfloat16):
        low = model(ids).logits.float()
    assert (low - full).square().mean() < 0.01 * full.square().mean()


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")  # renamed in transformers 5.23
def test_gradient_checkpointing_changes_nothing() -> None:
    ids = token_ids(13, 2, 6)
    gradients = []
    for checkpointing in (False, True):
        model = make_model().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(ids).logits.square().mean().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


def test_bytes_packed_and_dense() -> None:
    model = make_model()
    body = 2 * (48 * 48 * 2 + 48 * 24 * 2 + 3 * 48 * 80)
    rows = 2 * (48 + 24 + 24 + 48 + 80 + 80 + 48)
    table, norms = 61 * 48, 5 * 48
    table_bytes = 61 * (48 + 2 * 2)  # a scale for 32, and one for the other 16
    assert packed_bytes(make_model(tie_word_embeddings=True)) == body // 4 + 2 * rows + table_bytes + 4 * norms
    assert packed_bytes(model) == body // 4 + 2 * rows + 2 * table_bytes + 4 * norms
    assert dense_bytes(model) == 4 * (body + rows + 2 * table + norms)
    assert packed_bytes(make_model(quantise_weights=False)) == 2 * body + 2 * table_bytes + 4 * norms
