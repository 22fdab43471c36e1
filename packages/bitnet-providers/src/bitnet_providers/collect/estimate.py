"""What a collection will take, before the first call."""

from collections.abc import Iterable

import attrs

from bitnet_providers.config import CollectConfig, PriceConfig
from bitnet_providers.contract import GenerateRequest, ScoreRequest
from bitnet_providers.spending.budget import dollars, shown
from bitnet_providers.spending.token_counts import Tokens, about, at_most

BYTES_PER_CANDIDATE = 7
"""Of a raw shard, compressed, about: id or bytes and log-probability."""
BYTES_PER_TOKEN = 12
"""The same of what each position has beside its candidates."""


@attrs.frozen(kw_only=True)
class Estimate:
    """The requests that are still to be sent."""

    requests: int
    at_most: Tokens
    """The worst case; what the budget sets aside."""
    about: Tokens
    """Prompts at 4 bytes a token; answers as long as those so far, or as long as they may be where there are none."""
    dollars_at_most: float | None
    """None: no price is given."""
    dollars_about: float | None
    shard_bytes: int
    """Of the raw shards that they will fill, about."""
    positions: int
    """Tokens that get the teacher's candidates, about."""

    def lines(self) -> list[tuple[str, str]]:
        """(what, how much), for people."""
        most, expected = self.at_most, self.about
        lines = [
            ("requests", f"{self.requests:,}"),
            ("tokens at most", f"{most.total:,} ({most.input:,} prompt, {most.output:,} completion)"),
            (
                "tokens expected",
                f"about {expected.total:,} ({expected.input:,} prompt, {expected.output:,} completion)",
            ),
        ]
        if self.dollars_at_most is not None and self.dollars_about is not None:
            lines.append(
                ("price", f"{shown(self.dollars_at_most)} at most, about {shown(self.dollars_about)} expected")
            )
        else:
            lines.append(("price", "unknown: there is none in [collect.prices]"))
        return [*lines, ("raw shards", f"about {size_text(self.shard_bytes)}, {self.positions:,} positions")]


def size_text(size: float) -> str:
    """``12.3 MB``, ``4.5 GB``, ``1.2 TB``"""
    scale, unit = next((each for each in ((1e12, "TB"), (1e9, "GB")) if size >= each[0]), (1e6, "MB"))
    return f"{size / scale:,.1f} {unit}"


def estimate(
    requests: Iterable[tuple[GenerateRequest | ScoreRequest, int]],
    price: PriceConfig | None,
    answer_tokens: float | None = None,
) -> Estimate:
    """Sum up (request, samples). `answer_tokens` is the mean of the answers so far."""
    count, most, expected, shard_bytes, positions = 0, Tokens(), Tokens(), 0, 0
    for request, samples in requests:
        worst, likely = at_most(request), about(request, answer_tokens)
        count += samples
        most += Tokens(worst.input * samples, worst.output * samples)
        expected += Tokens(likely.input * samples, likely.output * samples)
        tokens = samples * (likely.output if isinstance(request, GenerateRequest) else likely.input)
        positions += tokens
        shard_bytes += tokens * (BYTES_PER_TOKEN + BYTES_PER_CANDIDATE * request.top_logprobs)
    return Estimate(
        requests=count,
        at_most=most,
        about=expected,
        dollars_at_most=None if price is None else dollars(price, most),
        dollars_about=None if price is None else dollars(price, expected),
        shard_bytes=shard_bytes,
        positions=positions,
    )


def needs_consent(found: Estimate, config: CollectConfig, *, external: bool) -> str | None:
    """What to ask before so much is spent; None: go on. A budget is no more than it says."""
    if found.requests == 0:
        return None
    limits = config.budget
    if found.dollars_at_most is not None:
        if min(found.dollars_at_most, limits.dollars or found.dollars_at_most) <= config.confirm_above_dollars:
            return None
        limit = f"collect.confirm_above_dollars = {config.confirm_above_dollars:g}"
    elif external and min(found.at_most.total, limits.tokens or found.at_most.total) > config.confirm_above_tokens:
        limit = f"collect.confirm_above_tokens = {config.confirm_above_tokens}"
    else:
        return None
    told = "; ".join(f"{name}: {value}" for name, value in found.lines())
    return f"The collection may take more than {limit} ({told}). Ask the teacher?"
