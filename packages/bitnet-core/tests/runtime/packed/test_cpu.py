"""The C++ products against integer arithmetic, on every instruction set that this machine has."""

import ctypes
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitnet_core.kernels.compile import instruction_sets, pointer
from bitnet_core.model.inference_copy import snapped_codes
from bitnet_core.runtime.packed.cpu import Linear, load_library
from bitnet_core.ternary.activation_quantiser import FakeQuantActivation, activation_codes
from bitnet_core.ternary.bitlinear import BitLinear
from bitnet_core.ternary.packed_linear import PackedBitLinear, pack_codes

pytestmark = pytest.mark.parametrize("instruction_set", instruction_sets())


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def layer_of(codes_OI: Tensor, scale: Tensor | None = None) -> PackedBitLinear:
    layer = PackedBitLinear(codes_OI.shape[1], codes_OI.shape[0])
    layer.codes.copy_(pack_codes(codes_OI))
    if scale is not None:
        layer.row_scale.copy_(scale)
    return layer


@torch.no_grad()
def cpu_linear(layer: PackedBitLinear, x_NI: Tensor, bits: int = 8, instruction_set: str | None = None) -> Tensor:
    """One layer in C++: [N, O] float32 of inputs [N, I], which are quantised to `bits` there."""
    library, _ = load_library(instruction_set)
    x_NI, scale_O = x_NI.float().contiguous(), layer.row_scale.float()
    bias_O = None if layer.bias is None else layer.bias.float()
    y_NO = torch.empty(len(x_NI), layer.out_features)
    struct = Linear(
        inputs=layer.in_features,
        outputs=layer.out_features,
        codes=pointer(layer.codes),
        row_scale=pointer(scale_O),
        bias=pointer(bias_O),
    )
    library.bitnet_linear(ctypes.byref(struct), pointer(x_NI), len(x_NI), bits, torch.get_num_threads(), pointer(y_NO))
    return y_NO


def whole_numbers(tokens: int, width: int, seed: int) -> Tensor:
    """Inputs that are their own integers: the largest of each token is 127, so its scale is 1."""
    x_NI = torch.randint(-127, 128, (tokens, width), generator=torch.Generator().manual_seed(seed)).float()
    x_NI[:, seed % width] = 127
    return x_NI


def random_codes(rows: int, width: int, seed: int) -> Tensor:
    return torch.randint(-1, 2, (rows, width), generator=torch.Generator().manual_seed(seed + 1)).to(torch.int8)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(st.integers(1, 19), st.integers(1, 700), st.integers(1, 9), st.integers(0, 2**31))
def test_integers_are_exact_for_all_shapes(instruction_set: str, rows: int, width: int, tokens: int, seed: int) -> None:
    codes_OI, x_NI = random_codes(rows, width, seed), whole_numbers(tokens, width, seed)
    exact_NO = x_NI.long() @ codes_OI.long().T
    assert torch.equal(cpu_linear(layer_of(codes_OI), x_NI, instruction_set=instruction_set).long(), exact_NO)


@pytest.mark.parametrize(("code", "sign"), [(1, 1), (1, -1), (-1, 1), (-1, -1)])
def test_no_sum_overflows(instruction_set: str, code: int, sign: int) -> None:
    """The largest sums that a width of 14336 + 3 can have."""
    width = 14339
    codes_OI = torch.full((5, width), code, dtype=torch.int8)
    x_NI = torch.full((5, width), 127.0 * sign)
    found_NO = cpu_linear(layer_of(codes_OI), x_NI, instruction_set=instruction_set)
    assert torch.equal(found_NO, torch.full((5, 5), 127.0 * sign * code * width))


@pytest.mark.parametrize("bits", [8, 4])
def test_activations_become_the_integers_of_the_quantiser(instruction_set: str, bits: int) -> None:
    """Rows that pick one input each show the codes; halves, which round to even, are among them."""
    x_NI = torch.randn(6, 300, generator=torch.Generator().manual_seed(0)) * torch.logspace(-30, 4, 6)[:, None]
    x_NI[3] = torch.arange(300) / 2 - 75  # scale 75 / 127
    x_NI[4] = torch.arange(300).remainder(255) - 127  # scale 1: whole numbers
    x_NI[5] = 0
    codes_NI, scale_N1 = activation_codes(x_NI, bits)
    found_NI = cpu_linear(layer_of(torch.eye(300, dtype=torch.int8)), x_NI, bits, instruction_set)
    tolerance = 0 if bits == 8 else 1e-6  # the mean's last bit depends on the order of its sum
    torch.testing.assert_close(found_NI, codes_NI * scale_N1, rtol=tolerance, atol=0)


@pytest.mark.parametrize("bits", [8, 4])
def test_it_computes_what_the_trained_layer_does(instruction_set: str, bits: int) -> None:
    torch.manual_seed(0)
    layer, x_NI = BitLinear(515, 133, bias=True), torch.randn(7, 515)
    torch.nn.init.normal_(layer.bias)
    layer.log_scale.data = layer.log_scale.data.exp().half().float().log()  # scales that float16 holds
    packed = PackedBitLinear(515, 133, bias=True)
    codes_OI, scale_O = snapped_codes("layer", layer)
    packed.codes.copy_(pack_codes(codes_OI))
    packed.row_scale.copy_(scale_O)
    packed.bias.data.copy_(layer.bias.data)
    with torch.no_grad():
        wanted_NO = layer(FakeQuantActivation(bits, low_bits=True)(x_NI))
    found_NO = cpu_linear(packed, x_NI, bits, instruction_set)
    assert (found_NO - wanted_NO).abs().max() < 1e-5 * wanted_NO.abs().max()


def test_a_layer_in_half_precision_has_its_bias(instruction_set: str) -> None:
    layer = PackedBitLinear(8, 33, bias=True)
    layer.codes.copy_(pack_codes(torch.zeros(33, 8)))
    assert layer.bias is not None
    layer.bias.data.copy_(torch.arange(33.0))
    assert cpu_linear(layer.half(), torch.ones(1, 8), instruction_set=instruction_set)[0].tolist() == list(range(33))


@pytest.mark.usefixtures("threads")
def test_the_number_of_threads_changes_nothing(instruction_set: str) -> None:
    codes_OI, x_NI = random_codes(37, 260, 3), torch.randn(5, 260, generator=torch.Generator().manual_seed(0))
    found = []
    for count in (1, 2, 3, 16):
        torch.set_num_threads(count)
        found.append(cpu_linear(layer_of(codes_OI), x_NI, instruction_set=instruction_set))
    assert all(torch.equal(each, found[0]) for each in found)
