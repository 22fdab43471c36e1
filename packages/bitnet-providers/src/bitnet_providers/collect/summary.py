"""What came of a collection, for reports: plain JSON values and one line for people."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from bitnet_providers.collect.ask_and_retry import Tally
from bitnet_providers.collect.journal_to_shards import no_answers
from bitnet_providers.collect.plan_requests import Plan
from bitnet_providers.collect.progress import many
from bitnet_providers.collect.servers import Server
from bitnet_providers.collect.stop import Stop
from bitnet_providers.config import CollectConfig
from bitnet_providers.contract import ProviderError
from bitnet_providers.raw.completion_ids import Key
from bitnet_providers.raw.journal import Rows
from bitnet_providers.raw.no_answer import CUT_IN_THOUGHT, FILTERED
from bitnet_providers.spending.budget import Spent, shown

UNKNOWN = "finish_unknown "
"""Begins the names of repairs that name a finish reason."""
LISTED = 100
"""Requests without an answer that are named one by one."""


@attrs.frozen(kw_only=True)
class Outcome:
    """What has come of the requests, before the shards are written."""

    planned: Plan
    missing: Plan
    """What of them was not there before this call."""
    damaged: int
    """Frames of the journal that are not what was written."""
    ledger_damaged: int
    """Lines of the ledger that are not what was written."""
    rows: Rows
    """The completions that are there now."""
    refused: Mapping[Key, str]
    """Why requests have no answer: the teacher refused, now or in an earlier call, or what it said holds none."""
    tally: Tally
    spent: Spent
    """The raw folder's, over all calls."""
    stop: Stop

    @property
    def completed(self) -> Plan:
        """What goes into the shards."""
        return self.planned.take((self.rows.find(self.planned.ids) >= 0) & ~self.planned.with_keys(self.refused))


def refused_of(planned: Plan, rows: Rows, told: Mapping[Key, str]) -> dict[Key, str]:
    """Why planned requests have no completion that counts; `told` is what the teacher said, now or earlier."""
    without = planned.take((rows.find(planned.ids) < 0) & planned.with_keys(told))
    return {each.key: told[each.key] for each in without} | no_answers(rows, planned)


def check_gathered(outcome: Outcome) -> None:
    """Nothing gathered is a failure. Raises ProviderError with the reason."""
    if outcome.completed:
        return
    if not outcome.planned:
        raise ProviderError(
            "[collect] no request falls to this machine: there are fewer requests than machines",
            "leave this machine out, or set collect.shard for fewer machines",
        )
    stopped = outcome.stop.error
    if stopped is not None:
        raise ProviderError(f"[collect] nothing was gathered: {stopped.why}", stopped.fix)
    if not outcome.refused:
        why = next(iter(outcome.tally.unanswered.values()))
        raise ProviderError(
            f"[collect] the teacher answered none of {len(outcome.planned):,} requests, the first with: {why}",
            "see that the server is well, then run again to go on",
        )
    (reason, _), *_ = Counter(outcome.refused.values()).most_common(1)
    raise ProviderError(
        f"[collect] the teacher refused all {len(outcome.planned):,} requests, most often with: {reason}",
        "mend what is asked, or ask again with --retry-failed",
    )


def summarise(
    outcome: Outcome, config: CollectConfig, counts: Mapping[str, Any], servers: Sequence[Server]
) -> dict[str, Any]:
    """`counts` is what `write_shards` counted; ``missing`` is what has no place in the shards, by why.

    ``servers``, where there are several: what each answered in this call, and why it was given up.
    """
    planned, refused, tally, stop = outcome.planned, outcome.refused, outcome.tally, outcome.stop
    unanswered = {key: why for key, why in tally.unanswered.items() if key not in outcome.rows}
    reasons = Counter(refused.values())
    filtered, in_thought = reasons[FILTERED], reasons[CUT_IN_THOUGHT]
    not_asked = len(planned) - counts["completions"] - len(refused) - len(unanswered)
    summary = {
        **counts,
        "planned": len(planned),
        "shard": config.shard,
        "reused": len(planned) - len(outcome.missing),
        "damaged": outcome.damaged,
        "ledger_damaged": outcome.ledger_damaged,
        "missing": {
            "refused": len(refused) - filtered - in_thought,
            "filtered": filtered,
            "cut_in_thought": in_thought,
            "unanswered": len(unanswered),
            "not_asked": not_asked,
        },
        "stopped": None if stop.error is None else str(stop.error),
        "refused": _listed(planned, refused),
        "refused_reasons": dict(reasons.most_common(LISTED)),
        "unanswered": _listed(planned, unanswered),
        "empty": len(unanswered.keys() & tally.empty.keys()),
        "retries": tally.retries,
        "rate_limited": tally.rate_limited,
        "spent": _spent(outcome.spent),
    }
    if len(servers) > 1:
        summary["servers"] = [
            {"name": each.name, "answered": each.answered, "given_up": each.given_up} for each in servers
        ]
    return {"headline": _headline(config, summary, min(outcome.damaged, len(outcome.missing))), **summary}


def _spent(spent: Spent) -> dict[str, Any]:
    return {
        "requests": spent.requests,
        "input_tokens": spent.tokens.input,
        "output_tokens": spent.tokens.output,
        "dollars": spent.dollars,
        "possibly_paid_requests": spent.possibly_paid,
        "possibly_paid_tokens": spent.possibly_paid_tokens.total,
    }


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
    if summary["ledger_damaged"]:
        parts.append(f"{many(summary['ledger_damaged'], 'damaged line')} of the ledger counted at the worst")
    missing = summary["missing"]
    if missing["refused"]:
        parts.append(f"{missing['refused']:,} refused by the teacher (--retry-failed asks again)")
    if missing["filtered"]:
        parts.append(f"{missing['filtered']:,} filtered by the teacher (paid and kept; --retry-failed asks again)")
    if missing["cut_in_thought"]:
        parts.append(f"{missing['cut_in_thought']:,} cut within their thoughts (raise collect.max_new_tokens)")
    if missing["unanswered"]:
        empty = f", {summary['empty']:,} of them empty" if summary["empty"] else ""
        parts.append(f"{missing['unanswered']:,} without an answer{empty} (--from collect asks again)")
    unknown = [f"{name.removeprefix(UNKNOWN)} ({count:,})" for name, count in summary["repairs"].items()
               if name.startswith(UNKNOWN)]  # fmt: skip
    if unknown:
        parts.append(f"unknown finish reasons, taken as cut: {', '.join(unknown)}")
    if summary["stopped"]:
        parts.append(f"{missing['not_asked']:,} of {summary['planned']:,} not asked: {summary['stopped']}")
    given_up = [each["name"] for each in summary.get("servers", ()) if each["given_up"]]
    if given_up:
        parts.append(f"{', '.join(given_up)} given up, its requests went to the other servers")
    if len(summary["models"]) > 1:
        parts.append(f"answers of several models: {', '.join(summary['models'])}")
    return "; ".join(parts)


def _listed(planned: Plan, reasons: Mapping[Key, str]) -> list[dict[str, Any]]:
    named = planned.take(planned.with_keys(reasons))[:LISTED]
    return [{"id": each.source_id, "sample": each.sample_idx, "reason": reasons[each.key]} for each in named]
