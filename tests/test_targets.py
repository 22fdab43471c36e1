"""Targets beyond the top K, across the packages: the gradient that a student gets, and the whole job."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor

from bitnet_cli import run
from bitnet_cli.main import cli
from bitnet_core.config.loss import SampledConfig
from bitnet_core.losses.chunked import load_loss
from bitnet_core.projection.kd_rows import Targets, kd_columns
from bitnet_providers.contract import SampledTarget
from bitnet_providers.teachers.local.candidates import candidates
from tiny_run import tiny_settings

QUICKSTART = Path(__file__).parents[1] / "manifests/quickstart.toml"
VOCABULARY, WIDTH, DRAWS = 4, 3, 3


def outcomes(log_p: Tensor, temperature: float) -> list[tuple[list[float], float]]:
    """Every way that the teacher's draws can fall: (uniform numbers that give it, probability).

    Draw r is uniform on [r, r+1)/R of the mass of p^t; the borders between tokens cut that into pieces of one outcome.
    """
    cumulative = (temperature * log_p).softmax(-1).cumsum(-1).tolist()[:-1]
    pieces = []
    for r in range(DRAWS):
        borders = [0.0, *(b * DRAWS - r for b in cumulative if 0 < b * DRAWS - r < 1), 1.0]
        pieces.append([((a + b) / 2, b - a) for a, b in itertools.pairwise(borders)])
    return [([u for u, _ in way], math.prod(p for _, p in way)) for way in itertools.product(*pieces)]


def stored(log_p: Tensor, target: SampledTarget, uniforms: list[float]) -> dict[str, Tensor]:
    """A batch of one token of prompt and one with the target, as teacher and projection make it."""
    found = candidates(log_p[None].float(), 0, target, torch.tensor([uniforms], dtype=torch.float64))
    used = torch.isfinite(found.logprobs_NK[0]).numpy()
    nothing = np.zeros(0, np.int32)
    targets = Targets(
        prompt_lengths=np.array([1]), response_lengths=np.array([1]), prompt_ids=nothing, response_ids=nothing,
        sample_logprob=np.zeros(1, np.float32), is_unknown=np.zeros(1, bool),
        kd_rows=np.zeros(1, np.int64), candidate_counts=np.array([used.sum()]),
        candidate_ids=found.ids_NK[0].numpy()[used].astype(np.int32),
        candidate_logprobs=found.logprobs_NK[0].numpy()[used],
        extra={"log_z": found.log_z_N.numpy(), "entropy": found.entropy_N.numpy()},
    )  # fmt: skip
    top, extra = kd_columns(targets, {"kind": "sampled"}, DRAWS)

    def column(values: Any, before: float) -> Tensor:
        row = torch.as_tensor(np.asarray(values, dtype=np.float32))
        return torch.cat([torch.full_like(row, before), row])[None]

    return {
        "attention_mask": torch.ones(1, 2, dtype=torch.bool),
        "has_kd": torch.tensor([[False, True]]),
        "is_prompt": torch.tensor([[True, False]]),
        "is_struct_token": torch.zeros(1, 2, dtype=torch.bool),
        "teacher_sample_id": torch.zeros(1, 2, dtype=torch.long),
        "topk_ids": torch.from_numpy(np.stack([np.zeros_like(top.ids[0]), top.ids[0]])).long()[None],
        "topk_logprobs": column(top.logprobs, -math.inf),
        "other_logprob": column(top.other, 0.0),
        "log_z": column(extra["log_z"], 0.0),
        "entropy": column(extra["entropy"], 0.0),
    }


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.4])
def test_the_expected_gradient_is_that_of_the_whole_distribution(temperature: float) -> None:
    """From the teacher's draws over the KD columns to the chunked loss: every outcome, with its probability."""
    generator = torch.Generator().manual_seed(3)
    log_p = (1.5 * torch.randn(VOCABULARY, generator=generator, dtype=torch.float64)).log_softmax(-1)
    hidden = torch.randn(1, 2, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()
    head = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()
    loss = load_loss(SampledConfig(ce_weight=0.0, format_weight=0.0))
    mean = [torch.zeros((), dtype=torch.float64), torch.zeros_like(hidden), torch.zeros_like(head)]
    for uniforms, probability in outcomes(log_p, temperature):
        value, _ = loss(hidden, head, stored(log_p, SampledTarget(DRAWS, temperature), uniforms))
        for total, part in zip(mean, (value.detach(), *torch.autograd.grad(value, (hidden, head))), strict=True):
            total += probability * part
    log_q = (hidden @ head.T)[0, 0].log_softmax(-1)
    whole = (log_p.exp() * (log_p - log_q)).sum()
    expected = (whole.detach(), *torch.autograd.grad(whole, (hidden, head)))
    for found, wanted in zip(mean, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)  # the columns are float32


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("sampled", {"collect.draws": 12}),
        ("tempered", {"collect.log_z_tau": 1.5, "loss.tau": 1.5}),
    ],
)
def test_the_whole_job(tiny_place: Path, tmp_path: Path, kind: str, settings: dict[str, Any]) -> None:
    """From an empty folder to the report, with a tiny teacher."""
    settings = {"collect.targets": kind, "loss.kind": kind, **settings}
    # A start from which four steps are an improvement for certain.
    settings |= {"student.start": "least_squares", "train.learning_rate": 3e-3, "train.scale_learning_rate": 1e-2}
    folder = run(QUICKSTART, tiny_settings(tmp_path, tiny_place / "teacher") | settings, quiet=True)
    figures = json.loads((folder / "reports/mini_evaluation_report.json").read_text())
    assert ("draws" in figures["kl_over"]) == (kind == "sampled")
    assert (figures["top1_agreement"] is None) == (kind == "sampled")
    for name in ("heldout_kl", "untrained_kl", "unigram_kl", "bigram_kl"):
        assert math.isfinite(figures[name])
    assert figures["heldout_kl"] < figures["untrained_kl"]
    raw = pq.read_table(folder / "raw/shard_000.parquet").to_pylist()[0]
    kd = [row for row in pq.read_table(folder / "data/kd_shard_000.parquet").to_pylist() if row["prompt_idx"] == 0]
    answer = kd[len(raw["prompt_ids"]) :]
    assert [row["has_kd"] for row in answer] == [True] * len(raw["token_ids"])
    if kind == "sampled":
        assert [row["entropy"] for row in answer] == raw["entropy"]
        assert all(len(row["topk_ids"]) == 12 for row in kd)
    for command in ("validate", "stats"):
        told = CliRunner().invoke(cli, ["traces", command, str(folder)])
        assert told.exit_code == 0, told.output
    assert kind in told.output
    shown = CliRunner().invoke(
        cli, ["traces", "show", str(folder), "3", "--checkpoint", str(folder / "checkpoints/step_4")]
    )
    assert shown.exit_code == 0, shown.output
    # topk_other reads the candidates of tempered targets too, and never draws.
    planned = plan(tmp_path / "other", f'collect.targets="{kind}"', 'loss.kind="topk_other"')
    assert ('set loss.kind = "sampled"' in planned.output) == (kind == "sampled")


def plan(root: Path, *settings: str) -> Result:
    arguments = [part for each in settings for part in ("--set", each)]
    return CliRunner().invoke(
        cli, ["plan", str(QUICKSTART.with_name("ci.toml")), *arguments], env={"DRIVE_ROOT": str(root)}
    )


@pytest.mark.slow
def test_a_loss_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    planned = plan(tmp_path, 'collect.targets="topk"', 'loss.kind="sampled"')
    assert planned.exit_code == 2, planned.output
    assert 'set loss.kind = "topk_other"' in planned.output
