"""What came of a collection, for reports: plain JSON values and one line for people."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from bitnet_providers.collect.ask import Tally
from bitnet_providers.collect.plan import Planned
from bitnet_providers.collect.progress import many
from bitnet_providers.collect.stop import Stop
from bitnet_providers.config import CollectConfig
from bitnet_providers.contract import ProviderError
from bitnet_providers.raw.journal import JournalRow, Key
from bitnet_providers.spending.costs import Spent, shown

UNKNOWN = "finish_unknown "
"""Begins the names of repairs that name a finish reason."""
LISTED = 100
"""Requests without an answer that are named one by one."""


def check_gathered(
    planned: Sequence[Planned], have: Sequence[Planned], refused: Mapping[Key, str], tally: Tally, stop: Stop
) -> None:
    """Nothing gathered is a failure. Raises ProviderError with the reason."""
    if have:
        return
    if not planned:
        raise ProviderError("[collect] no request falls to this machine: there are fewer requests than machines")
    if stop.reason is not None:
        raise ProviderError(f"[collect] nothing was gathered: {stop.reason}")
    reasons = Counter(refused[each.key] for each in planned if each.key in refused)
    if not reasons:
        why = next(iter(tally.unanswered.values()))
        raise ProviderError(f"[collect] the teacher answered none of {len(planned):,} requests, the first with: {why}")
    why = f"the teacher refused all {len(planned):,} requests, most often with: {reasons.most_common(1)[0][0]}"
    raise ProviderError(f"[collect] {why}; mend what is asked, or ask again with --retry-failed")


def summarise(
    *,
    config: CollectConfig,
    planned: Sequence[Planned],
    missing: Sequence[Planned],
    damaged: int,
    gathered: Mapping[Key, JournalRow],
    refused: Mapping[Key, str],
    tally: Tally,
    spent: Spent,
    stop: Stop,
    counts: Mapping[str, Any],
    seconds: float,
    tokens_per_second: float | None,
) -> dict[str, Any]:
    """``missing`` is what has no place in the shards, by why; ``spent`` is the raw folder's, over all runs."""
    left_out = {each.key: refused[each.key] for each in planned if each.key in refused}
    unanswered = {key: why for key, why in tally.unanswered.items() if key not in gathered}
    not_asked = len(planned) - counts["completions"] - len(left_out) - len(unanswered)
    summary = {
        **counts,
        "planned": len(planned),
        "shard": config.shard,
        "reused": len(planned) - len(missing),
        "damaged": damaged,
        "missing": {"refused": len(left_out), "unanswered": len(unanswered), "not_asked": not_asked},
        "stopped": stop.reason,
        "refused": _listed(planned, left_out),
        "refused_reasons": dict(Counter(left_out.values()).most_common(LISTED)),
        "unanswered": _listed(planned, unanswered),
        "empty": len(unanswered.keys() & tally.empty.keys()),
        "retries": tally.retries,
        "rate_limited": tally.rate_limited,
        "spent": {
            "requests": spent.requests,
            "input_tokens": spent.tokens.input,
            "output_tokens": spent.tokens.output,
            "dollars": spent.dollars,
            "possibly_paid_requests": spent.possibly_paid,
            "possibly_paid_tokens": spent.possibly_paid_tokens.total,
        },
        "seconds": seconds,
        "tokens_per_second": tokens_per_second,
    }
    return {"headline": _headline(config, summary, min(damaged, len(missing))), **summary}


def _headline(config: CollectConfig, summary: Mapping[str, Any], asked_again: int) -> str:
    already = f" ({summary['reused']:,} already there)" if summary["reused"] else ""
    parts = [f"{summary['completions']:,} completions{already}, {summary['kd_positions']:,} KD positions"]
    if not summary["kd_positions"]:
        why = "the teacher gives no top log-probabilities" if config.top_k else "collect.top_k = 0"
        parts.append(f"no candidates: {why}, so a student learns by CE alone")
    dollars = summary["spent"]["dollars"]
    if dollars is not None:
        at_most = "at most " if summary["spent"]["possibly_paid_requests"] else ""
        parts.append(f"{at_most}{shown(dollars)} spent in all")
    if asked_again:
        parts.append(f"{many(asked_again, 'damaged completion')} in the journal asked again")
    missing = summary["missing"]
    if missing["refused"]:
        parts.append(f"{missing['refused']:,} refused by the teacher (--retry-failed asks again)")
    if missing["unanswered"]:
        empty = f", {summary['empty']:,} of them empty" if summary["empty"] else ""
        parts.append(f"{missing['unanswered']:,} without an answer{empty} (--from collect asks again)")
    unknown = [f"{name.removeprefix(UNKNOWN)} ({count:,})" for name, count in summary["repairs"].items()
               if name.startswith(UNKNOWN)]  # fmt: skip
    if unknown:
        parts.append(f"unknown finish reasons, taken as cut: {', '.join(unknown)}")
    if summary["stopped"]:
        parts.append(f"{missing['not_asked']:,} of {summary['planned']:,} not asked: {summary['stopped']}")
    if len(summary["models"]) > 1:
        parts.append(f"answers of several models: {', '.join(summary['models'])}")
    return "; ".join(parts)


def _listed(planned: Sequence[Planned], reasons: Mapping[Key, str]) -> list[dict[str, Any]]:
    named = [each for each in planned if each.key in reasons][:LISTED]
    return [{"id": each.source_id, "sample": each.sample_idx, "reason": reasons[each.key]} for each in named]
