"""The chunked loss equals the plain one, in value and in both gradients; its sum of the head's gradient is exact."""

from typing import Any

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitnet_core.config.loss import JensenShannonConfig, ReverseKLConfig, TopKOtherConfig
from bitnet_core.losses import chunked
from bitnet_core.losses.chunked import HalvedSum, Loss, WholeSum, chunked_combined_loss, head_sum_like, load_loss
from bitnet_core.losses.masks_and_rows import token_weight
from bitnet_core.losses.reference import combined_loss

torch.set_num_threads(1)

WIDTH, VOCABULARY = 6, 13
NO_WEIGHTS = ("chunk_tokens", "intermediate")
OPTIONS = TopKOtherConfig(tau=1.4, ce_weight=0.3, format_weight=0.5, chunk_tokens=3)


def random_batch(seed: int, b: int = 3, t: int = 6, k: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def coin(p: float) -> Tensor:
        return torch.rand(b, t, generator=generator) < p

    logprobs = (2 * torch.randn(b, t, VOCABULARY, generator=generator)).log_softmax(-1)
    top = logprobs.topk(k, dim=-1)
    other = logprobs.scatter(-1, top.indices, -torch.inf).logsumexp(-1)
    values, ids = top.values, top.indices
    short = coin(0.3)
    values[..., -2:] = torch.where(short[..., None], -torch.inf, values[..., -2:])
    ids[..., -2:] = torch.where(short[..., None], 0, ids[..., -2:])
    other = torch.where(coin(0.2), -torch.inf, other)
    mask = torch.arange(t) < torch.randint(3, t + 1, (b, 1), generator=generator)
    return {
        "attention_mask": mask,
        "teacher_sample_id": torch.randint(0, VOCABULARY, (b, t), generator=generator),
        "topk_ids": ids,
        "topk_logprobs": values,
        "other_logprob": other,
        "is_struct_token": coin(0.4),
        "has_kd": coin(0.7) & mask,
        "is_prompt": torch.arange(t).expand(b, t) < 2,
    }


def plain(hidden: Tensor, head: Tensor, batch: dict[str, Tensor], options: TopKOtherConfig, **more: Any) -> Any:
    weights = {name: value for name, value in attrs.asdict(options).items() if name not in NO_WEIGHTS}
    return combined_loss(hidden @ head.T, batch, **weights, **more)


def inputs(seed: int, dtype: torch.dtype = torch.float32, size: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = size * torch.randn(3, 6, WIDTH, generator=generator, dtype=dtype)
    return hidden.requires_grad_(), torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=dtype).requires_grad_()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    tau=st.sampled_from([0.7, 1.0, 2.5]),
    chunk=st.sampled_from([1, 4, 100]),
    k=st.integers(1, VOCABULARY),
    ce_weight=st.sampled_from([0.0, 0.3]),
)
def test_equals_the_plain_loss(seed: int, tau: float, chunk: int, k: int, ce_weight: float) -> None:
    options = TopKOtherConfig(tau=tau, ce_weight=ce_weight, format_weight=0.5, chunk_tokens=chunk)
    hidden, head = inputs(seed)
    batch = random_batch(seed, k=max(k, 2))
    expected, expected_metrics = plain(hidden, head, batch, options)
    expected_gradients = torch.autograd.grad(expected, (hidden, head))
    loss, metrics = chunked_combined_loss(hidden, head, batch, options)
    gradients = torch.autograd.grad(loss, (hidden, head))
    assert metrics.keys() == expected_metrics.keys()
    for name, value in expected_metrics.items():
        torch.testing.assert_close(metrics[name], value, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_float64_gradients_are_those_of_the_gradchecked_plain_loss() -> None:
    hidden, head = inputs(1, torch.float64)
    batch = random_batch(2)
    expected = torch.autograd.grad(plain(hidden, head, batch, OPTIONS)[0], (hidden, head))
    gradients = torch.autograd.grad(chunked_combined_loss(hidden, head, batch, OPTIONS)[0], (hidden, head))
    for mine, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-13)


def test_gradients_are_finite_differences_of_the_value() -> None:
    # Not torch's gradcheck: it takes the gradient of one result several times.
    hidden, head = inputs(1, torch.float64)
    batch = random_batch(2)
    gradients = torch.autograd.grad(chunked_combined_loss(hidden, head, batch, OPTIONS)[0], (hidden, head))
    step_h, step_w = torch.randn_like(hidden), torch.randn_like(head)
    with torch.no_grad():
        ahead, behind = (
            chunked_combined_loss(hidden + e * step_h, head + e * step_w, batch, OPTIONS)[0] for e in (1e-6, -1e-6)
        )
    slope = (gradients[0] * step_h).sum() + (gradients[1] * step_w).sum()
    assert float(ahead - behind) / 2e-6 == pytest.approx(float(slope), rel=1e-6)


@pytest.mark.parametrize("size", [1e4, 1e-4])
def test_saturated_logits_stay_finite(size: float) -> None:
    hidden, head = inputs(3, size=size)
    loss, _ = chunked_combined_loss(hidden, head, random_batch(4), OPTIONS)
    gradients = torch.autograd.grad(loss, (hidden, head))
    assert torch.isfinite(loss)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_tied_head_gets_both_gradients() -> None:
    batch = random_batch(5)
    ids = torch.randint(0, VOCABULARY, (3, 6))
    _, table = inputs(5)
    (expected,) = torch.autograd.grad(plain(table[ids], table, batch, OPTIONS)[0], table)
    (gradient,) = torch.autograd.grad(chunked_combined_loss(table[ids], table, batch, OPTIONS)[0], table)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)


def test_a_frozen_head_gets_none() -> None:
    hidden, head = inputs(6)
    batch = random_batch(6)
    frozen = head.detach()
    (expected,) = torch.autograd.grad(plain(hidden, head, batch, OPTIONS)[0], hidden)
    chunked_combined_loss(hidden, frozen, batch, OPTIONS)[0].backward()
    assert frozen.grad is None
    torch.testing.assert_close(hidden.grad, expected, rtol=1e-5, atol=1e-6)


def test_accumulation_with_the_normaliser_is_the_big_batch() -> None:
    parts = [random_batch(seed) for seed in (7, 8)]
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    hidden = torch.randn(6, 6, WIDTH, requires_grad=True)
    _, head = inputs(7)
    loss = load_loss(OPTIONS)
    expected = torch.autograd.grad(loss(hidden, head, joined)[0], (hidden, head))
    normaliser = sum(token_weight(part) for part in parts)
    total = sum(loss(hidden[3 * i : 3 * i + 3], head, part, normaliser)[0] for i, part in enumerate(parts))
    for mine, theirs in zip(torch.autograd.grad(total, (hidden, head)), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_upstream_gradient_scales_and_a_second_backward_is_refused() -> None:
    hidden, head = inputs(8)
    batch = random_batch(8)
    (expected,) = torch.autograd.grad(chunked_combined_loss(hidden, head, batch, OPTIONS)[0], head)
    loss, _ = chunked_combined_loss(hidden, head, batch, OPTIONS)
    (scaled,) = torch.autograd.grad(3 * loss, head, retain_graph=True)
    torch.testing.assert_close(scaled, 3 * expected)
    with pytest.raises(RuntimeError, match="call the loss again"):
        loss.backward()


def test_no_target_at_all_costs_nothing() -> None:
    hidden, head = inputs(9)
    batch = random_batch(9) | {"has_kd": torch.zeros(3, 6, dtype=torch.bool), "is_prompt": torch.ones(3, 6).bool()}
    loss, metrics = chunked_combined_loss(hidden, head, batch, OPTIONS)
    gradients = torch.autograd.grad(loss, (hidden, head))
    assert float(loss.detach()) == 0.0
    assert float(metrics["kd_tokens"]) == 0.0
    assert all((gradient == 0).all() for gradient in gradients)


def test_without_gradients_it_is_the_same_number() -> None:
    hidden, head = inputs(10)
    batch = random_batch(10)
    with torch.no_grad():
        loss, _ = chunked_combined_loss(hidden, head, batch, OPTIONS)
    assert not loss.requires_grad
    assert float(loss) == pytest.approx(float(plain(hidden, head, batch, OPTIONS)[0].detach()), rel=1e-5)


def test_bf16_autocast_keeps_float32_gradients_close() -> None:
    hidden, head = inputs(11)
    batch = random_batch(11)
    expected = torch.autograd.grad(plain(hidden, head, batch, OPTIONS)[0], (hidden, head))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = chunked_combined_loss(hidden, head, batch, OPTIONS)
    assert loss.dtype == torch.float32
    for mine, theirs in zip(torch.autograd.grad(loss, (hidden, head)), expected, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - theirs).norm() < 0.03 * theirs.norm()


def test_prompt_and_padding_never_meet_the_head() -> None:
    hidden, head = inputs(12)
    batch = random_batch(12)
    clean, _ = chunked_combined_loss(hidden, head, batch, OPTIONS)
    wanted = torch.zeros(3, 6, dtype=torch.bool)
    wanted[:, :-1] = ((batch["has_kd"] | ~batch["is_prompt"]) & batch["attention_mask"])[:, 1:]
    poisoned = hidden.detach().where(wanted[..., None], torch.nan)
    assert float(chunked_combined_loss(poisoned, head, batch, OPTIONS)[0].detach()) == float(clean.detach())


@pytest.mark.parametrize(
    "loss",
    [
        load_loss(OPTIONS),
        load_loss(ReverseKLConfig(chunk_tokens=3)),
        load_loss(JensenShannonConfig(chunk_tokens=3)),
    ],
)
def test_it_takes_part_in_a_compiled_step(loss: Loss) -> None:
    """A user compiles model and loss as one function."""
    projection = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(8))

    def step(hidden: Tensor, head: Tensor, batch: dict[str, Tensor]) -> Tensor:
        value: Tensor = loss(torch.tanh(hidden @ projection), head, batch)[0]
        return 3 * value

    compiled = torch.compile(step, backend="aot_eager")
    for seed in (3, 4):
        batch = random_batch(seed)
        found, expected = inputs(seed), inputs(seed)
        values = compiled(*found, batch), step(*expected, batch)
        for value in values:
            value.backward()
        torch.testing.assert_close(values[0], values[1])
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad)


torch.set_num_threads(1)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), chunks=st.integers(0, 6), spread=st.sampled_from([1e-30, 1.0, 1e30]))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_the_float32_sum(dtype: torch.dtype, seed: int, chunks: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    head = torch.zeros(11, 3, dtype=dtype)
    scale = torch.tensor(0.37)
    halved = head_sum_like(head, dtype)
    assert isinstance(halved, HalvedSum)
    total = torch.zeros(11, 3)
    for _ in range(chunks):
        size = spread * 10.0 ** torch.randint(-3, 3, (5, 11), generator=generator)
        grad = (size * torch.randn(5, 11, generator=generator)).to(dtype)
        hidden = torch.randn(5, 3, generator=generator).to(dtype)
        halved.add_product(grad, hidden)
        total += torch.mm(grad.T, hidden)
    expected = (total * scale).to(dtype)
    assert torch.equal(halved.finish(scale).view(torch.int16), expected.view(torch.int16)) or (
        torch.equal(expected.isnan(), halved.finish(torch.tensor(1.0)).isnan()) and expected.isnan().any()
    )


def test_tiles_cover_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "_TILE_ROWS", 4)
    grad, hidden = torch.randn(5, 11).bfloat16(), torch.randn(5, 3).bfloat16()
    summed = head_sum_like(torch.zeros(11, 3).bfloat16(), torch.bfloat16)
    summed.add_product(grad, hidden)
    summed.add_product(grad, hidden)
    assert torch.equal(summed.finish(torch.tensor(0.5)), torch.mm(grad.T, hidden))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wide_heads_need_no_halves(dtype: torch.dtype) -> None:
    grad, hidden = torch.randn(5, 11, dtype=dtype), torch.randn(5, 3, dtype=dtype)
    summed = head_sum_like(torch.zeros(11, 3, dtype=dtype), dtype)
    assert isinstance(summed, WholeSum)
    summed.add_product(grad, hidden)
    torch.testing.assert_close(summed.finish(torch.tensor(2.0, dtype=dtype)), 2 * grad.T @ hidden)


def test_a_bf16_sum_would_lose_what_the_halves_keep() -> None:
    one, small = torch.ones(1, 1).bfloat16(), torch.full((1, 1), 2.0**-10).bfloat16()
    summed = head_sum_like(torch.zeros(1, 1).bfloat16(), torch.bfloat16)
    summed.add_product(one, one)
    for _ in range(16):
        summed.add_product(small, one)
    assert float(one + small) == 1.0
    assert float(summed.finish(torch.tensor(1.0))) == 1 + 2.0**-6
