import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from bitnet_core.errors import CoreError
from bitnet_core.export.gguf.tensors import rotary_order
from bitnet_core.export.gguf.widths import BLOCK, BLOCKS, padded_widths
from bitnet_core.model import BitNetKDEConfig


def config(**sizes: object) -> BitNetKDEConfig:
    return BitNetKDEConfig(vocab_size=8, num_hidden_layers=1, **sizes)


def test_smollm2s_widths() -> None:
    found = padded_widths(config(hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3))
    assert (found.hidden, found.inner, found.heads, found.kv_heads) == (768, 1536, 12, 4)
    assert found.shrink == 0.75
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
    as_it_is = padded_widths(config(**sizes), BLOCKS["q2_0"])
    assert (as_it_is.hidden, as_it_is.inner, as_it_is.heads, as_it_is.kv_heads) == (576, 1536, 9, 3)
    assert as_it_is.shrink == 1


@given(st.integers(1, 6), st.integers(1, 5), st.sampled_from([16, 32, 64, 80, 128]), st.integers(1, 40),
       st.sampled_from([BLOCK, *BLOCKS.values()]))  # fmt: skip
def test_every_width_becomes_a_multiple_and_heads_keep_their_groups(
    kv_heads: int, group: int, head_dim: int, inner: int, block: int
) -> None:
    sizes = config(
        hidden_size=kv_heads * group * head_dim,
        intermediate_size=inner * 32,
        num_attention_heads=kv_heads * group,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
    )
    found = padded_widths(sizes, block)
    assert found.hidden % block == found.inner % block == found.heads * head_dim % block == 0
    assert found.heads == found.kv_heads * group
    assert 0 <= found.hidden - sizes.hidden_size < block
    assert 0 <= found.inner - sizes.intermediate_size < block
    assert found.kv_heads >= kv_heads
    # no smaller number of groups would do
    assert all(fewer * group * head_dim % block for fewer in range(kv_heads, found.kv_heads))


def test_with_subln_both_norms_grow_by_one_ratio() -> None:
    found = padded_widths(
        config(hidden_size=192, intermediate_size=256, num_attention_heads=6, num_key_value_heads=2, sublayer_norm=True)
    )
    assert (found.hidden, found.inner, found.heads, found.kv_heads) == (384 * 2, 1024, 24, 8)


def test_with_subln_widths_that_cannot_grow_together_are_refused() -> None:
    with pytest.raises(CoreError, match=r"hidden_size 256 and intermediate_size 300 can't be padded exactly"):
        padded_widths(
            config(
                hidden_size=256, intermediate_size=300, num_attention_heads=4, num_key_value_heads=4, sublayer_norm=True
            )
        )


@given(st.integers(1, 600), st.integers(0, 2**31), st.sampled_from([1e-3, 1.0, 100.0]))
def test_rescaled_gains_and_eps_give_the_same_norm(width: int, seed: int, size: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, gain = (
        torch.randn(3, width, generator=generator).double() * size,
        torch.randn(width, generator=generator).double(),
    )
    padded = -(-width // BLOCK) * BLOCK
    shrink = width / padded
    norm, wide = LlamaRMSNorm(width, eps=1e-5).double(), LlamaRMSNorm(padded, eps=1e-5 * shrink).double()
    norm.weight.data = gain
    wide.weight.data = torch.nn.functional.pad(gain * shrink**0.5, (0, padded - width))
    with torch.no_grad():
        ours, theirs = norm(x), wide(torch.nn.functional.pad(x, (0, padded - width)))
    torch.testing.assert_close(theirs[:, :width], ours, rtol=1e-5, atol=1e-7)
    assert not theirs[:, width:].any()


def test_rotary_order_puts_both_halves_side_by_side() -> None:
    rows = np.arange(8, dtype=np.float32)  # two heads of four
    assert rotary_order(rows, 4).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
