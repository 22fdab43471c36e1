"""Packed rows teach what the same documents teach one a row."""

from typing import Any

import numpy as np
import pytest
import torch

from bitnet_core.config.loss import TopKOtherConfig
from bitnet_core.config.train import TrainConfig
from bitnet_core.losses.chunked import load_loss
from bitnet_core.losses.masks_and_rows import token_weight
from bitnet_core.model.configuration import BitNetKDEConfig
from bitnet_core.model.modeling import BitNetKDEForCausalLM
from bitnet_core.traces.dataset import KDTraceDataset
from bitnet_core.training.micro_batch import UNPADDED, batch_of, hidden_states, training_batch

LENGTH = 45


def student(vocabulary: int, bits: int) -> BitNetKDEForCausalLM:
    torch.manual_seed(0)
    config = BitNetKDEConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    model = BitNetKDEForCausalLM(config)
    model.set_activation_bits(bits)
    return model.double().train()  # in float64 no rounding tie of the quantisers falls to the other side


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_packed_loss_and_gradients_equal_the_unpacked(traces: Any, bits: int) -> None:
    documents = KDTraceDataset(traces.data, max_seq_len=LENGTH)
    chosen = [0, 5, 3, 11, 7, 8, 2]
    found = {}
    for name, packed_length in (("alone", None), ("packed", LENGTH)):
        model = student(documents.vocab_size, bits)
        batch = training_batch(documents, chosen, packed_length)
        loss = load_loss(TopKOtherConfig(ce_weight=0.3, format_weight=0.2))
        value, parts = loss(hidden_states(model.model, batch), model.lm_head.weight, batch, token_weight(batch))
        value.backward()
        gradients = {key: weight.grad for key, weight in model.named_parameters() if weight.grad is not None}
        found[name] = (batch, value.detach(), parts, gradients)
    (alone, value, parts, gradients), (packed, packed_value, packed_parts, packed_gradients) = found.values()
    assert packed["input_ids"].shape[0] < len(chosen) == alone["input_ids"].shape[0]
    assert int(packed["document_ids"].max()) > 0
    assert int(packed["attention_mask"].sum()) == int(alone["attention_mask"].sum())
    torch.testing.assert_close(packed_value, value, rtol=1e-5, atol=1e-5)
    for name, part in parts.items():
        torch.testing.assert_close(packed_parts[name], part, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == packed_gradients.keys()
    assert max(float(gradient.abs().max()) for gradient in gradients.values()) > 1e-3
    for key, gradient in gradients.items():
        torch.testing.assert_close(packed_gradients[key], gradient, rtol=1e-5, atol=1e-7, msg=key)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("length", [LENGTH, 8])
def test_hidden_states_are_those_of_the_plain_mask(traces: Any, attention: str, length: int) -> None:
    """With padding, and without any: what goes to the decoder is then made without a look at the mask."""
    documents = KDTraceDataset(traces.data, max_seq_len=length)
    model = student(documents.vocab_size, bits=8)
    model.config._attn_implementation = attention
    batch = batch_of(documents, np.array([0, 5, 3, 11]), TrainConfig(max_seq_len=length))
    assert (UNPADDED in batch) == (length == 8)
    expected = model.model(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    assert torch.equal(hidden_states(model.model, batch), expected)


def test_a_document_of_a_packed_row_does_not_see_the_others(traces: Any) -> None:
    documents = KDTraceDataset(traces.data, max_seq_len=LENGTH)
    model = student(documents.vocab_size, bits=8).eval()
    batch = training_batch(documents, [0, 1, 2, 3], 64)
    last = batch["document_ids"][0] == batch["document_ids"][0].max()
    before = hidden_states(model.model, batch)[0, last]
    first = batch["document_ids"][0] == 0
    batch["input_ids"][0, first] = (batch["input_ids"][0, first] + 1) % documents.vocab_size
    torch.testing.assert_close(hidden_states(model.model, batch)[0, last], before, rtol=0, atol=0)
