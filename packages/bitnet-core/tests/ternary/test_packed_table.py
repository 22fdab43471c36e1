import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bitnet_core.ternary.packed_table import PackedEmbedding, PackedHead, TiedHead, pack_table, unpack_table

Q8_0 = gguf.GGMLQuantizationType.Q8_0
floats = st.floats(-8, 8, width=32)
tables = arrays.arrays(np.float32, st.tuples(st.integers(1, 3), st.sampled_from([32, 64])), elements=floats)


@given(tables)
def test_llama_cpp_stores_these_values_as_they_are(table_VD: np.ndarray) -> None:  # type: ignore[type-arg]
    ours = unpack_table(*pack_table(torch.from_numpy(table_VD))).numpy()
    np.testing.assert_array_equal(gguf.quants.dequantize(gguf.quants.quantize(ours, Q8_0), Q8_0), ours)


@given(tables)
def test_no_value_is_further_away_than_llama_cpps(table_VD: np.ndarray) -> None:  # type: ignore[type-arg]
    ours = unpack_table(*pack_table(torch.from_numpy(table_VD))).numpy()
    largest = np.abs(table_VD.reshape(len(table_VD), -1, 32)).max(-1).repeat(32, -1).reshape(table_VD.shape)
    half_a_step, smallest_scales = largest / 127 * 0.505, 127 * 2.0**-24  # of float16
    assert (np.abs(ours - table_VD) <= half_a_step + smallest_scales).all()


def test_a_width_that_is_no_multiple_of_32() -> None:
    table_VD = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    codes_VD, scale_VB = pack_table(table_VD)
    assert (codes_VD.shape, codes_VD.dtype, scale_VB.shape) == ((5, 40), torch.int8, (5, 2))
    assert torch.equal(scale_VB, scale_VB.half().float())
    padded = torch.nn.functional.pad(table_VD, (0, 24))
    assert torch.equal(unpack_table(*pack_table(padded))[:, :40], unpack_table(codes_VD, scale_VB))


def test_zero_rows_stay_zero_and_tiny_ones_become_it() -> None:
    table_VD = torch.cat([torch.zeros(1, 32), torch.full((1, 32), 1e-9), torch.full((1, 32), 127 / 128)])
    assert torch.equal(unpack_table(*pack_table(table_VD)), torch.tensor([0.0, 0.0, 127 / 128])[:, None].expand(3, 32))


@pytest.mark.parametrize("width", [40, 64])
def test_embedding_and_heads_are_the_dense_ones_of_these_values(width: int) -> None:
    generator = torch.Generator().manual_seed(1)
    embedding, head = PackedEmbedding(7, width), PackedHead(7, width)
    codes_VD, scale_VB = pack_table(torch.randn(7, width, generator=generator))
    for table in (embedding, head):
        table.load_state_dict({"codes": codes_VD, "block_scale": scale_VB})
    dense_VD, ids, x_BTD = unpack_table(codes_VD, scale_VB), torch.tensor([[3, 0], [6, 3]]), torch.randn(2, 3, width)
    assert torch.equal(embedding(ids), dense_VD[ids])
    for each in (head, TiedHead(embedding)):
        torch.testing.assert_close(each(x_BTD), x_BTD @ dense_VD.T)
    assert not TiedHead(embedding).state_dict()


@given(st.integers(0, 2**31), st.floats(1e-9, 1e3))
def test_packing_what_was_unpacked_changes_nothing(seed: int, size: float) -> None:
    """Also where the scales are so small that float16 has few places for them."""
    weight = size * torch.randn(3, 70, generator=torch.Generator().manual_seed(seed))
    codes, scales = pack_table(weight)
    again, same = pack_table(unpack_table(codes, scales))
    assert torch.equal(again, codes)
    assert torch.equal(same, scales)
