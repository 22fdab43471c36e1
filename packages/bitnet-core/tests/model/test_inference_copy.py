from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bitnet_core.errors import CoreError
from bitnet_core.model import packed_bytes
from bitnet_core.model.inference_copy import snapped, snapped_codes
from bitnet_core.model.read_checkpoint import load_model
from bitnet_core.ternary.bitlinear import BitLinear, ternary_layers
from bitnet_core.ternary.packed_linear import PackedBitLinear, unpack_codes


def test_codes_stay_scales_become_float16_and_tables_8_bits(checkpoint: Path) -> None:
    model = load_model(checkpoint)
    twin = snapped(model)
    modules = dict(twin.named_modules())
    for name, layer in ternary_layers(model):
        packed = modules[name]
        assert isinstance(packed, PackedBitLinear)
        assert torch.equal(unpack_codes(packed.codes, packed.in_features), layer.codes())
        assert torch.equal(packed.row_scale, layer.log_scale.detach().exp().half().float())
    table = model.model.embed_tokens.weight.detach()
    largest_VB = table.view(len(table), -1, 32).abs().amax(-1)
    error_VB = (twin.model.embed_tokens.weight - table).view(len(table), -1, 32).abs().amax(-1)
    assert (error_VB <= largest_VB / 127 * 0.51).all()
    assert torch.equal(twin.model.norm.weight, model.model.norm.weight)
    assert torch.equal(twin.lm_head.weight, twin.model.embed_tokens.weight)
    assert not any(name.startswith("lm_head") for name in twin.state_dict()), "a tied head is stored once"
    assert packed_bytes(twin) == packed_bytes(model)


def test_the_original_is_untouched_and_says_nearly_the_same(checkpoint: Path) -> None:
    model = load_model(checkpoint).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    twin = snapped(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    ids = torch.arange(24)[None]
    model.set_activation_bits(16)
    twin.set_activation_bits(16)
    with torch.no_grad():
        ours, theirs = (torch.log_softmax(each(ids).logits, -1) for each in (model, twin))
    assert 0 < float((ours.exp() * (ours - theirs)).sum(-1).mean()) < 1e-3


def with_scale(scale: float) -> BitLinear:
    layer = BitLinear(8, 2)
    layer.weight.data[:] = scale * torch.tensor([1.0, -1, 0, 1, 1, 0, -1, 1])
    layer.log_scale.data[:] = torch.tensor(scale).log()
    return layer


@pytest.mark.parametrize(("scale", "stays"), [(6e-8, True), (1e-5, True), (1.0, True), (1e-8, False)])
def test_small_scales_go_subnormal_or_to_a_row_of_zeros(scale: float, stays: bool) -> None:
    codes_OI, scale_O = snapped_codes("layer", with_scale(scale))
    assert bool((scale_O > 0).all()) is stays
    assert bool(codes_OI.any()) is stays


def test_what_float16_cannot_hold_is_refused_by_name() -> None:
    with pytest.raises(CoreError, match=r"up_proj\.log_scale, as scales, holds 70000, which float16 can't"):
        snapped_codes("up_proj", with_scale(70000.0))


def test_not_a_number_is_refused(make_checkpoint: Callable[..., Path]) -> None:
    model = load_model(make_checkpoint())
    model.model.embed_tokens.weight.data[3, 3] = float("nan")
    with pytest.raises(CoreError, match=r"embed_tokens\.weight holds inf"):
        snapped(model)
