import torch
from hypothesis import given
from hypothesis import strategies as st

from bitnet_core.model.inference_copy import snapped_codes
from bitnet_core.ternary.bitlinear import BitLinear, quantised_once
from bitnet_core.ternary.packed_linear import PackedBitLinear, pack_codes, unpack_codes


@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 2**31))
def test_codes_come_back(rows: int, width: int, seed: int) -> None:
    codes_OI = torch.randint(-1, 2, (rows, width), generator=torch.Generator().manual_seed(seed)).to(torch.int8)
    packed_OP = pack_codes(codes_OI)
    assert packed_OP.dtype == torch.uint8
    assert packed_OP.shape == (rows, -(-width // 4))
    assert torch.equal(unpack_codes(packed_OP, width), codes_OI)


def test_a_byte_holds_four_codes_lowest_bits_first() -> None:
    assert pack_codes(torch.tensor([[-1, 0, 1, 1, 1]])).tolist() == [[0b10100100, 0b00000010]]


def packed(layer: BitLinear) -> PackedBitLinear:
    codes_OI, scale_O = snapped_codes("layer", layer)
    twin = PackedBitLinear(layer.in_features, layer.out_features, layer.bias is not None)
    twin.codes.copy_(pack_codes(codes_OI))
    twin.row_scale.copy_(scale_O)
    if layer.bias is not None and twin.bias is not None:
        twin.bias.data.copy_(layer.bias.data)
    return twin


def test_it_computes_what_the_trained_layer_does() -> None:
    torch.manual_seed(0)
    layer, x_NI = BitLinear(70, 33, bias=True), torch.randn(5, 70)
    torch.nn.init.normal_(layer.bias)
    layer.log_scale.data = layer.log_scale.data.exp().half().float().log()  # scales that float16 holds
    twin = packed(layer)
    with torch.no_grad():
        torch.testing.assert_close(twin(x_NI), layer(x_NI), rtol=1e-5, atol=1e-6)
        with quantised_once(twin):
            assert twin._held_weight is not None
            torch.testing.assert_close(twin(x_NI), layer(x_NI), rtol=1e-5, atol=1e-6)
    assert twin._held_weight is None
