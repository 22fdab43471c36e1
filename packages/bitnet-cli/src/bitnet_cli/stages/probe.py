"""Before a collection: are the teacher's log-probabilities to be trusted? Asked live, or known from this week."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bitnet_cli import run_folder
from bitnet_cli.stage import Context
from bitnet_cli.stages import names

if TYPE_CHECKING:
    from bitnet_providers.contract import Teacher
    from bitnet_providers.probe.verdict import Verdict

KNOWN_BY_CONSTRUCTION: Final = frozenset({"local"})
"""Teachers whose log-probabilities this very code computes: there is nothing to find out."""


async def probe_before(context: Context, teacher: "Teacher") -> "Verdict | None":
    """The verdict on the run's teacher; None where nothing rests on it. It is kept in ``reports/teacher_probe.json``.

    Raises ProviderError where the collection would gather log-probabilities that can't be trusted: so far only the
    probe's own questions were paid for.
    """
    from bitnet_providers.probe.cache import read_verdict, write_verdict
    from bitnet_providers.probe.gate import check_collection, wants_probe

    config, tagged = context.manifest.collect, context.manifest.teacher
    assert config is not None
    assert tagged is not None
    if tagged.kind in KNOWN_BY_CONSTRUCTION or not wants_probe(config, teacher.capabilities):
        (context.folder / names.PROBE).unlink(missing_ok=True)
        return None
    path = verdict_file(tagged.kind, tagged.options, teacher)
    verdict = None if path is None else read_verdict(path)
    known = verdict is not None
    if verdict is None:
        verdict = await probe(tagged.kind, teacher, context)
        if path is not None:
            with contextlib.suppress(OSError):
                write_verdict(path, verdict)
    run_folder.write_json(context.folder / names.PROBE, verdict.to_json())
    context.say(said_in_a_line(verdict, known=known))
    check_collection(verdict, config)
    return verdict


async def probe(kind: str, teacher: "Teacher", context: Context) -> "Verdict":
    from bitnet_providers.probe.ask import estimate, probe_teacher

    cost = estimate(teacher.capabilities)
    context.say(f"probing the teacher first: {cost.requests} requests, at most {cost.tokens:,} tokens")
    return await probe_teacher(teacher, kind, on_progress=context.on_progress)


def verdict_file(kind: str, options: object, teacher: "Teacher") -> Path | None:
    """Where the verdict on this teacher is kept; None on a machine without a cache folder."""
    from bitnet_providers.contract import ProviderError
    from bitnet_providers.local.model_source import cache_folder
    from bitnet_providers.probe.cache import verdict_key, verdict_path

    try:
        return verdict_path(cache_folder(), verdict_key(kind, options, teacher.description))
    except ProviderError:
        return None


def said_in_a_line(verdict: "Verdict", *, known: bool) -> str:
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
