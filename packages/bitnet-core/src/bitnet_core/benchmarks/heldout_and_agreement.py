"""``heldout`` and ``agreement``: scores of the held-out traces, from the sums that the evaluation has anyhow."""

from typing import TYPE_CHECKING

from bitnet_core.benchmarks.contract import Benchmark, Result, Score, Subject
from bitnet_core.config.evaluate import NoOptions

if TYPE_CHECKING:
    from bitnet_core.benchmarks.contract import DocumentScores


def load_heldout(_: NoOptions) -> Benchmark:
    return heldout


def load_agreement(_: NoOptions) -> Benchmark:
    return agreement


def heldout(subject: Subject) -> Result:
    """KL to the teacher (of the teacher itself: 0, by definition), and perplexity."""
    return Result(scores=heldout_scores(subject.heldout()))


def agreement(subject: Subject) -> Result:
    """How often the likeliest token is the teacher's (of the teacher itself: always, by definition)."""
    return Result(scores=agreement_scores(subject.heldout()))


def heldout_scores(sums: "DocumentScores") -> dict[str, Score]:
    return {
        "kl": Score(sums=sums.kl, counts=sums.kd_positions, unit="nats per token", quality="none"),
        "perplexity": Score(sums=sums.nll, counts=sums.scored_positions, exp=True, unit="per token", quality="inverse"),
    }


def agreement_scores(sums: "DocumentScores") -> dict[str, Score]:
    return {"top1": Score(sums=sums.agreement, counts=sums.top1_positions, unit="share of tokens")}
