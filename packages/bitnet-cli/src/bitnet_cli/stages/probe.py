"""Before a collection: are the teacher's log-probabilities to be trusted? Asked live, or known from this week."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from bitnet_cli import run_folder
from bitnet_cli.stages.stage import Context

if TYPE_CHECKING:
    from bitnet_providers.collect.collect import Prepared
    from bitnet_providers.contract import Teacher
    from bitnet_providers.probe.verdict import Verdict

KNOWN_BY_CONSTRUCTION: Final = frozenset({"local"})
"""Teachers whose log-probabilities this very code computes: there is nothing to find out."""


@attrs.frozen
class Outlook:
    """What is known of the teacher before a collection."""

    verdict: "Verdict | None"
    """None: nothing is known, or nothing rests on it."""
    asks: bool
    """It has to be probed first."""


def find_outlook(context: Context, teacher: "Teacher", before: "Prepared") -> Outlook:
    """This week's verdict, where log-probabilities are collected.

    Where nothing will be asked, nothing is asked about the teacher either: the verdict that was found then counts,
    however old it is.
    """
    from datetime import timedelta

    from bitnet_providers.probe.probe_before_collecting import will_ask
    from bitnet_providers.probe.verdict import read_verdict, wants_probe

    config, tagged = context.manifest.collect, context.manifest.teacher
    assert config is not None
    assert tagged is not None
    if not may_probe(tagged.kind) or not wants_probe(config, teacher.capabilities):
        return Outlook(None, asks=False)
    path = verdict_file(tagged.kind, tagged.options, teacher)
    verdict = None if path is None else read_verdict(path)
    if verdict is not None or will_ask(before, config):
        return Outlook(verdict, asks=verdict is None)
    for old in (path, context.folder / run_folder.PROBE):
        if old is not None and verdict is None:
            verdict = read_verdict(old, max_age=timedelta.max)
    if verdict is None:
        context.notify("nothing is left to ask the teacher, so it is not probed; bitnet probe asks it all the same")
    return Outlook(verdict, asks=False)


async def probe_before(
    context: Context, teacher: "Teacher", outlook: Outlook, before: "Prepared", raw: Path
) -> "tuple[Verdict | None, Prepared]":
    """The verdict on the run's teacher, asked for where `outlook` says so, and `before` with what that took.

    It is kept in ``reports/teacher_probe.json``. Raises ProviderError where the collection would gather
    log-probabilities that can't be trusted: so far only the probe's own questions were paid for.
    """
    from bitnet_providers.contract import servers_of
    from bitnet_providers.probe.probe_before_collecting import probe_booked
    from bitnet_providers.probe.questions import estimate
    from bitnet_providers.probe.verdict import check_collection

    config, tagged, verdict = context.manifest.collect, context.manifest.teacher, outlook.verdict
    assert config is not None
    assert tagged is not None
    if outlook.asks:
        cost = estimate(teacher.capabilities, len(servers_of(teacher)))
        context.notify(f"probing the teacher first: {cost.requests} requests, at most {cost.tokens:,} tokens")
        verdict, before = await probe_booked(teacher, tagged.kind, config, raw, before, context.on_progress)
        keep_verdict(verdict, tagged.kind, tagged.options, teacher)
        for server in left_out(teacher):
            context.notify(f"{server} could not be asked: its requests go to the other servers")
    if verdict is None:
        (context.folder / run_folder.PROBE).unlink(missing_ok=True)
        return None, before
    run_folder.write_json(context.folder / run_folder.PROBE, verdict.to_json())
    context.notify(verdict_line(verdict, known=not outlook.asks))
    check_collection(verdict, config)
    return verdict, before


def may_probe(kind: str) -> bool:
    """Whether there is anything to find out about teachers of this kind."""
    return kind not in KNOWN_BY_CONSTRUCTION


def verdict_file(kind: str, options: object, teacher: "Teacher") -> Path | None:
    """Where the verdict on this teacher is kept; None on a machine without a cache folder."""
    from bitnet_providers.contract import ProviderError
    from bitnet_providers.probe.verdict import verdict_key, verdict_path
    from bitnet_providers.teachers.local.model_source import cache_folder

    try:
        return verdict_path(cache_folder(), verdict_key(kind, options, teacher.description))
    except ProviderError:
        return None


def left_out(teacher: "Teacher") -> list[str]:
    """The servers of several that the probe could not reach."""
    return [str(each.description["base_url"]) for each in getattr(teacher, "left_out", ())]


def keep_verdict(verdict: "Verdict", kind: str, options: object, teacher: "Teacher") -> None:
    """For a week; not where it says nothing of some of the servers."""
    from bitnet_providers.probe.verdict import write_verdict

    path = verdict_file(kind, options, teacher)
    if path is not None and not left_out(teacher):
        with contextlib.suppress(OSError):
            write_verdict(path, verdict)


def verdict_line(verdict: "Verdict", *, known: bool) -> str:
    """For the log: trusted or not, the rule, and what it took."""
    word = "trusted for KD" if verdict.trusted_for_kd else "not trusted for KD"
    source = (
        f"known from {verdict.probed[:10]}"
        if known
        else f"{verdict.requests} requests, {verdict.prompt_tokens + verdict.completion_tokens:,} tokens"
    )
    return (
        f"probe: {word}; {verdict.max_top_logprobs} candidates; log-probabilities {verdict.temperature_rule} ({source})"
    )
