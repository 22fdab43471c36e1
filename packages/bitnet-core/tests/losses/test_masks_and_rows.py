"""A batch of tensors at hand is the one that the losses were written for."""

import math

import pytest
import torch

from bitnet_core import (
    CoreError,
    TopKOtherConfig,
    batch_from_logits,
    batch_from_topk,
    chunked_combined_loss,
    combined_loss,
)  # fmt: skip

B, T, K, V = 2, 6, 3, 11


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(B, T, V, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(1))


def test_the_teacher_itself_costs_nothing(logits: torch.Tensor, ids: torch.Tensor) -> None:
    """Candidates at t are compared with logits at t: an alignment that is off by one would cost."""
    top = logits.log_softmax(-1).topk(K)
    batch = batch_from_topk(ids, top.indices, top.values)
    _, parts = combined_loss(logits, batch, tau=1.5)
    assert parts["kd_tokens"] == parts["ce_tokens"] == B * (T - 1)
    assert abs(parts["kd"].item()) < 1e-6
    _, off = combined_loss(logits.roll(1, dims=1), batch, tau=1.5)
    assert off["kd"] > 0.1


def test_prompt_padding_and_positions_without_candidates(logits: torch.Tensor, ids: torch.Tensor) -> None:
    top = logits.log_softmax(-1).topk(K)
    values, indices = top.values.clone(), top.indices.clone()
    values[0, 3], indices[0, 3] = math.nan, -1  # nothing is known of token 4
    values[1, 2, 1:], indices[1, 2, 1:] = -torch.inf, -1  # one candidate of token 3
    mask, is_prompt = torch.ones(B, T, dtype=torch.long), torch.zeros(B, T, dtype=torch.bool)
    mask[1, 5] = 0
    is_prompt[:, :2] = True
    batch = batch_from_topk(ids, indices, values, attention_mask_BT=mask, is_prompt_BT=is_prompt)
    assert batch["has_kd"].int().tolist() == [[0, 0, 1, 1, 0, 1], [0, 0, 1, 1, 1, 0]]
    assert batch["topk_ids"].min() >= 0
    assert batch["other_logprob"][0, 4] == 0
    one = values[1, 2, 0].exp()
    assert batch["other_logprob"][1, 3].exp() == pytest.approx((1 - one).item(), rel=1e-6)
    _, parts = combined_loss(logits, batch, ce_weight=0.1)
    assert (parts["kd_tokens"].item(), parts["ce_tokens"].item()) == (6, 7)
    assert not is_prompt[:, 2:].any()
    assert abs(parts["kd"].item()) < 1e-6


def test_padding_on_the_left_predicts_nothing(logits: torch.Tensor, ids: torch.Tensor) -> None:
    top = logits.log_softmax(-1).topk(K)
    mask = torch.ones(B, T, dtype=torch.long)
    mask[0, :2] = 0
    batch = batch_from_topk(ids, top.indices, top.values, attention_mask_BT=mask)
    assert batch["has_kd"].int().tolist() == [[0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 1, 1]]
    assert combined_loss(logits, batch)[1]["ce_tokens"] == 3 + 5


def test_candidates_with_all_mass_leave_a_rest(ids: torch.Tensor) -> None:
    certain = torch.tensor([1e-4, -30.0]).expand(B, T, 2)  # Σp above 1, by rounding somewhere
    batch = batch_from_topk(ids, torch.tensor([1, 2]).expand(B, T, 2), certain)
    assert batch["other_logprob"][:, 1:].exp().tolist() == [[pytest.approx(1e-8)] * (T - 1)] * B


def test_shapes_that_do_not_belong_together_are_named(ids: torch.Tensor) -> None:
    topk = torch.zeros(B, T, K, dtype=torch.long)
    with pytest.raises(CoreError, match=r"topk_logprobs_BTK is \[2, 6, 2\].*\[B, T, K\]"):
        batch_from_topk(ids, topk, torch.zeros(B, T, 2))
    with pytest.raises(CoreError, match=r"is_prompt_BT is \[2, 5\]"):
        batch_from_topk(ids, topk, topk.float(), is_prompt_BT=torch.zeros(B, T - 1))
    with pytest.raises(CoreError, match=r"no \[B, T\]"):
        batch_from_topk(ids[0], topk[0], topk[0].float())


def test_a_batch_that_lacks_columns_says_which(logits: torch.Tensor, ids: torch.Tensor) -> None:
    batch = {"input_ids": ids, "topk_ids": torch.zeros(B, T, K), "topk_logprobs": torch.zeros(B, T, K)}
    with pytest.raises(CoreError, match=r"no attention_mask, is_prompt, .*  → make .* collate_fn, .* batch_from_topk"):
        combined_loss(logits, batch)
    with pytest.raises(CoreError, match="no attention_mask, is_prompt"):
        chunked_combined_loss(logits, torch.zeros(5, V), batch, TopKOtherConfig())


def test_dense_logits_are_their_top_and_the_exact_rest(logits: torch.Tensor, ids: torch.Tensor) -> None:
    """Against the softmax in float64; in bfloat16 the rest keeps its digits, which 1 − Σp would lose."""
    sharp = (logits * 20).requires_grad_(True)
    batch = batch_from_logits(ids, sharp, K)
    probabilities = sharp.detach().softmax(-1)
    for row in range(B):
        for step in range(1, T):
            wanted = sorted(range(V), key=lambda token: -probabilities[row, step - 1, token].item())
            assert batch["topk_ids"][row, step].tolist() == wanted[:K]
            rest = math.fsum(probabilities[row, step - 1, token].item() for token in wanted[K:])
            assert batch["other_logprob"][row, step].item() == pytest.approx(math.log(rest), rel=1e-9)
    assert batch["other_logprob"].min() < math.log(1e-12)
    assert not batch["topk_logprobs"].requires_grad
    _, parts = combined_loss(logits, batch_from_logits(ids, logits, K), tau=1.7)
    assert abs(parts["kd"].item()) < 1e-12
    half = batch_from_logits(ids, logits.bfloat16(), K)
    assert half["topk_logprobs"].dtype == torch.float32
    torch.testing.assert_close(
        half["other_logprob"], batch_from_logits(ids, logits.bfloat16().double(), K)["other_logprob"].float()
    )


def test_dense_logits_that_are_no_distribution_are_refused(logits: torch.Tensor, ids: torch.Tensor) -> None:
    """They would leave cross-entropy alone, in silence. -inf for some tokens is fine, and padding may hold anything."""
    for value, place in ((math.nan, (0, 1, 2)), (math.inf, (0, 1, 2)), (-math.inf, (0, 1))):
        broken = logits.detach().clone()
        broken[place] = value
        with pytest.raises(CoreError, match=r"at 1 positions the logits are no distribution \(NaN or inf\)  → run"):
            batch_from_logits(ids, broken, K)
        mask = torch.ones(B, T)
        mask[0, 1:] = 0
        assert batch_from_logits(ids, broken, K, attention_mask_BT=mask)["has_kd"][0].sum() == 0
    barred = logits.detach().clone()
    barred[..., 1] = -math.inf
    assert batch_from_logits(ids, barred, V)["has_kd"][:, 1:].all()


def test_dense_logits_may_keep_all_tokens(logits: torch.Tensor, ids: torch.Tensor) -> None:
    mask = torch.ones(B, T, dtype=torch.long)
    mask[0, 4:] = 0
    batch = batch_from_logits(ids, logits, V, attention_mask_BT=mask)
    assert batch["has_kd"].int().tolist() == [[0, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1]]
    other = torch.randn(B, T, V, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    _, parts = combined_loss(other, batch)
    kl_BT = (logits.softmax(-1) * (logits.log_softmax(-1) - other.log_softmax(-1))).sum(-1)
    wanted = torch.cat([kl_BT[0, :3], kl_BT[1, :5]]).mean()
    assert parts["kd"].item() == pytest.approx(wanted.item(), rel=1e-5)
    with pytest.raises(CoreError, match=r"k = 12, of 11 tokens  → take one in 1..11"):
        batch_from_logits(ids, logits, V + 1)
    with pytest.raises(
        CoreError, match=r"batch_from_logits: input_ids_BT is \[2, 5\], teacher_logits_BTV is \[2, 6, 11\]"
    ):
        batch_from_logits(ids[:, 1:], logits, K)
