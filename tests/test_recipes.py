"""benchmarks.recipes: the peers' losses are what they are called, and docs/recipes.md shows what was measured."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.peer_losses import MIS_TAU, PEER_LOSSES
from benchmarks.recipe_tables import tables
from benchmarks.recipes import SIZES, make_loss, recipes, train_settings
from bitnet_core.config.loss import TopKOtherConfig
from bitnet_core.losses.chunked import load_loss

ROOT = Path(__file__).parents[1]
VOCABULARY, K = 40, 4


def flat_teacher() -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Hidden states and head whose logits are a flat teacher's own, and its top-K traces."""
    torch.manual_seed(0)
    logits_TV = 0.1 * torch.randn(6, VOCABULARY)
    logprobs_TV = logits_TV.log_softmax(-1)
    topk, ids = logprobs_TV.topk(K)
    rows = torch.ones(1, 6, dtype=torch.bool)
    # Row t is predicted by the hidden state of t - 1.
    hidden = logits_TV.roll(-1, 0)[None].requires_grad_()
    batch = {
        "attention_mask": rows,
        "is_prompt": ~rows,
        "has_kd": rows,
        "is_struct_token": ~rows,
        "teacher_sample_id": ids[None, :, 0],
        "topk_ids": ids[None],
        "topk_logprobs": topk[None],
        "other_logprob": torch.log1p(-topk.exp().sum(-1))[None],
    }
    return hidden, torch.eye(VOCABULARY), batch


@pytest.mark.parametrize("name", PEER_LOSSES)
def test_a_student_equal_to_its_teacher_is_moved_by_the_peers_and_not_by_ours(name: str) -> None:
    hidden, head, batch = flat_teacher()
    for tau in (1.0, MIS_TAU):
        ours, _ = load_loss(TopKOtherConfig(tau=tau, ce_weight=0.0, format_weight=0.0))(hidden, head, batch)
        assert abs(float(ours.detach())) < 1e-5
    value, _ = PEER_LOSSES[name](hidden, head, batch)
    (gradient,) = torch.autograd.grad(value, hidden)
    assert float(value.detach()) > 0.1
    assert float(gradient.abs().max()) > 1e-3


def test_every_recipe_can_be_made() -> None:
    names = [recipe.name for recipe in recipes()]
    assert len(set(names)) == len(names)
    for recipe in recipes():
        make_loss(recipe)
        for size in SIZES.values():
            assert train_settings(size, recipe).steps == size.train["steps"]


@pytest.mark.parametrize("result", ["recipes", "recipes_three_layers"])
def test_the_page_shows_the_measured_tables(result: str) -> None:
    page = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    for group, table in tables(json.loads((ROOT / f"benchmarks/results/{result}.json").read_text())).items():
        assert table in page, f"docs/recipes.md: the table of {group} is not that of benchmarks.recipe_tables"
