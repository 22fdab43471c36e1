"""Triton's kernels and the engine on them, on CPU tensors. Run by test_runtime_triton.py with ``TRITON_INTERPRET=1``,
which Triton reads when it is first imported; pytest does not collect this file by itself.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bitnet_core.errors import CoreError
from bitnet_core.model import BitNetKDEConfig, BitNetKDEForCausalLM
from bitnet_core.model.inference_copy import snapped
from bitnet_core.runtime.packed import triton_products
from bitnet_core.runtime.packed.cuda import CudaEngine, put_kernels
from bitnet_core.runtime.packed.triton_products import (
    GEMV_TILES,
    PREFILL_TILES,
    QuantisedTokens,
    Tile,
    padded_codes,
    product,
    quantise,
)
from bitnet_core.ternary.activation_quantiser import FakeQuantActivation, activation_codes
from bitnet_core.ternary.packed_linear import PackedBitLinear, pack_codes

SHAPES = [(1, 1, 1), (1, 3, 5), (1, 64, 64), (1, 100, 7), (1, 257, 33), (1, 576, 130), (1, 4096, 24), (2, 70, 20),
          (3, 4, 4), (17, 255, 40), (64, 130, 66), (70, 1000, 129)]  # fmt: skip
"""Tokens, inputs, outputs: widths that fill no byte, word, row or tile among them."""


def codes_of(x: QuantisedTokens, inputs: int) -> Tensor:
    """[N, I] out of the planes; what is behind the last column must be zero."""
    columns_NI = x.planes_N4P.permute(0, 2, 1).reshape(len(x.planes_N4P), -1)
    assert not columns_NI[:, inputs:].any()
    return columns_NI[:, :inputs]


def exact(codes_NI: Tensor, weight_OI: Tensor) -> Tensor:
    return codes_NI.long() @ weight_OI.long().T


@pytest.mark.parametrize(("tokens", "inputs", "outputs"), SHAPES)
@pytest.mark.parametrize(("bits", "matrices"), [(8, True), (4, True), (8, False)])
def test_products_are_the_integers_times_the_scales(
    tokens: int, inputs: int, outputs: int, bits: int, matrices: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without int8 tensor cores."""
    monkeypatch.setattr(triton_products, "has_int8_matrices", lambda _: matrices)
    torch.manual_seed(inputs)
    weight_OI, scale_O = torch.randint(-1, 2, (outputs, inputs)), torch.rand(outputs) + 0.1
    x_NI = torch.randn(tokens, inputs) * torch.rand(tokens, 1) * 10
    x = quantise(x_NI, bits)
    codes_NI, token_scale_N1 = activation_codes(x_NI, bits)
    assert torch.equal(codes_of(x, inputs).float(), codes_NI)
    torch.testing.assert_close(x.scale_N, token_scale_N1[:, 0], rtol=0 if bits == 8 else 3e-7, atol=0)
    assert torch.equal(x.sum_N.long(), codes_NI.long().sum(1))
    y_NO = product(x, padded_codes(pack_codes(weight_OI)), scale_O)
    expected_NO = exact(codes_NI, weight_OI).double() * scale_O.double() * x.scale_N.double()[:, None]
    torch.testing.assert_close(y_NO.double(), expected_NO, rtol=3e-7, atol=0)


@pytest.mark.parametrize(
    ("tokens", "tile"), [(1, tile) for tile in GEMV_TILES] + [(33, tile) for tile in PREFILL_TILES]
)
def test_every_tile_gives_the_same_integers(tokens: int, tile: Tile) -> None:
    """Scales of 1 leave the integers bare: each is below 2^24, which float32 holds exactly."""
    torch.manual_seed(1)
    weight_OI = torch.randint(-1, 2, (70, 3000))
    x = quantise(torch.randn(tokens, 3000), 8)
    y_NO = product(
        QuantisedTokens(x.planes_N4P, torch.ones(tokens), x.sum_N, x.shape), padded_codes(pack_codes(weight_OI)),
        torch.ones(70), tile=tile,
    )  # fmt: skip
    assert torch.equal(y_NO.long(), exact(codes_of(x, 3000), weight_OI))


@pytest.mark.parametrize(("sign", "tokens"), [(1, 1), (-1, 1), (-1, 2)])
def test_the_largest_sums_do_not_overflow(sign: int, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two tokens without tensor cores, where a sum is of unsigned digits until the end."""
    monkeypatch.setattr(triton_products, "has_int8_matrices", lambda _: False)
    inputs = 32768
    weight_OI = torch.full((3, inputs), sign)
    weight_OI[1] = 0
    x = quantise(torch.full((tokens, inputs), -2.0), 8)
    bare = QuantisedTokens(x.planes_N4P, torch.ones(tokens), x.sum_N, x.shape)
    y_NO = product(bare, padded_codes(pack_codes(weight_OI)), torch.ones(3))
    assert y_NO.tolist() == [[-127.0 * inputs * sign, 0.0, -127.0 * inputs * sign]] * tokens


def test_halves_round_to_even_and_nothing_is_divided_by_zero() -> None:
    x_NI = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5], [0.0] * 7, [1e-38] * 7, [3e38, -3e38, *[0.0] * 5]])
    x = quantise(x_NI, 8)
    assert codes_of(x, 7)[0].tolist() == [127, 0, 2, 2, 0, -2, -126]
    codes_NI, scale_N1 = activation_codes(x_NI, 8)
    assert torch.equal(codes_of(x, 7).float(), codes_NI)
    assert torch.equal(x.scale_N, scale_N1[:, 0])


def test_bias_and_dtype_and_leading_dimensions() -> None:
    torch.manual_seed(2)
    layer = PackedBitLinear(40, 6, bias=True)
    layer.codes.copy_(pack_codes(torch.randint(-1, 2, (6, 40))))
    layer.row_scale.uniform_(0.5, 2)
    with torch.no_grad():
        assert layer.bias is not None
        layer.bias.normal_()
    model = nn.Sequential(FakeQuantActivation(8, low_bits=True), layer)
    x_BTI = torch.randn(2, 3, 40)
    expected_BTO = model(x_BTI)
    put_kernels(model, torch.float32)
    torch.testing.assert_close(model(x_BTI), expected_BTO, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(x_BTI[:1, :1]), expected_BTO[:1, :1], rtol=1e-5, atol=1e-5)
    low = product(quantise(x_BTI, 8), padded_codes(layer.codes), layer.row_scale, dtype=torch.bfloat16)
    assert low.dtype == torch.bfloat16


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "A4": {"activation_bits": 4},
    "everything": {"qk_norm": True, "sublayer_norm": True, "qkv_bias": True, "mlp_bias": True, "hadamard": True,
                   "tie_word_embeddings": False},
}  # fmt: skip


def student(**changes: Any) -> BitNetKDEForCausalLM:
    sizes = {"vocab_size": 90, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
             "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
             "tie_word_embeddings": True}  # fmt: skip
    torch.manual_seed(0)
    model = BitNetKDEForCausalLM(BitNetKDEConfig(**(sizes | changes)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.mul_(1 + 0.4 * torch.rand_like(parameter))
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
    return snapped(model)


IDS = [5, 9, 20, 33, 7, 12, 80, 41]


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_the_engine_says_what_the_model_says(changes: dict[str, Any]) -> None:
    model = student(**changes)
    with torch.no_grad():
        expected_TV = model(input_ids=torch.tensor([IDS])).logits[0]
    engine = CudaEngine(model, dtype=torch.float32, device="cpu", context=48)
    whole_TV = engine.logits(IDS)
    # At 4 bits the scale's last bit may differ, and with it a code that lies on a half.
    tolerance = 1e-4 if changes.get("activation_bits") != 4 else 0.05
    torch.testing.assert_close(whole_TV, expected_TV, rtol=0, atol=tolerance)
    for length in (3, 4, 4, 2):  # back, on, again, back
        torch.testing.assert_close(
            engine.logits(IDS[:length], last=1)[0], expected_TV[length - 1], rtol=0, atol=tolerance
        )
    assert engine.logits([*IDS[:4], 1, 2], last=2).shape == (2, 90)
    torch.testing.assert_close(engine.logits(IDS, last=3), expected_TV[-3:], rtol=0, atol=tolerance)
    with pytest.raises(CoreError, match="this context has 48"):
        engine.logits(IDS * 7)


def test_in_float16_large_values_between_the_layers_do_not_overflow() -> None:
    """Gate times up is beyond 65504 here, and float16 alone would make infinities of it."""
    model = student()
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith(("gate_proj.row_scale", "up_proj.row_scale")):
                buffer.fill_(900.0)
            elif name.endswith("down_proj.row_scale"):
                buffer.fill_(2e-6)
        inner = []
        model.model.layers[0].mlp.output_quantiser.register_forward_pre_hook(lambda _, given: inner.append(given[0]))
        expected_TV = model(input_ids=torch.tensor([IDS])).logits[0]
    assert inner[0].abs().max() > 65504
    engine = CudaEngine(model, dtype=torch.float16, device="cpu", context=48)
    assert engine.head == "float16"
    torch.testing.assert_close(engine.logits(IDS), expected_TV, rtol=0, atol=0.05)
    assert engine._cache.layers[0].keys.dtype == torch.float16


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupted_pass_leaves_nothing_that_is_gone_on_from(when: str) -> None:
    engine = CudaEngine(student(), dtype=torch.float32, device="cpu", context=48)
    expected_V = engine.logits([*IDS, 3], last=1)[0]
    engine.logits(IDS[:4])
    body = engine._body.forward

    def interrupted(**inputs: Any) -> Any:
        if when == "after":
            body(**inputs)
        raise KeyboardInterrupt

    engine._body.forward = interrupted
    with pytest.raises(KeyboardInterrupt):
        engine.logits(IDS)
    engine._body.forward = body
    torch.testing.assert_close(engine.logits([*IDS, 3], last=1)[0], expected_V, rtol=0, atol=1e-4)


@pytest.mark.parametrize("id_", [-1, 90])
def test_an_id_that_is_no_token_is_refused(id_: int) -> None:
    engine = CudaEngine(student(), dtype=torch.float32, device="cpu", context=48)
    with pytest.raises(CoreError, match=f"token {id_}: the model knows 0 to 89"):
        engine.logits([1, id_])


class NeverAsks(TorchDispatchMode):
    """Fails where the host waits for a value of the device, which a CUDA graph can't."""

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        assert func not in (aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default), func
        return func(*args, **(kwargs or {}))


def test_a_decode_step_never_asks_the_device() -> None:
    engine = CudaEngine(student(), dtype=torch.float32, device="cpu", context=48)
    engine.logits(IDS)
    with NeverAsks():
        engine._step()
    with pytest.raises(AssertionError), NeverAsks():
        torch.ones(1).item()


def test_what_has_no_integers_is_refused() -> None:
    with pytest.raises(CoreError, match="integer activations, 8 or 4 bits"):
        CudaEngine(student(), bits=16, device="cpu")
    dense = BitNetKDEForCausalLM(
        BitNetKDEConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
                        quantise_weights=False)
    )  # fmt: skip
    with pytest.raises(CoreError, match="not ternary"):
        CudaEngine(dense, device="cpu")
