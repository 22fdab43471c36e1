"""collect: what the teacher says (sampling) and how likely it finds given text (scoring), in its own tokens."""

import asyncio
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs

from bitnet_cli import run_folder
from bitnet_cli.errors import Problem, UserError, problem_of
from bitnet_cli.manifest.stage_needs import COLLECT
from bitnet_cli.stages.probe import Outlook, find_outlook, probe_before
from bitnet_cli.stages.stage import Context, Stage
from bitnet_providers.config import BASELINE_PROMPTS, CollectConfig

if TYPE_CHECKING:
    from bitnet_cli.manifest import Manifest
    from bitnet_cli.plugins.catalog import Plugins
    from bitnet_providers.collect.collect import Prepared
    from bitnet_providers.contract import Teacher


def uses_baseline(manifest: "Manifest") -> bool:
    return manifest.collect is not None and manifest.collect.prompts == BASELINE_PROMPTS


def collect_settings(manifest: "Manifest") -> CollectConfig:
    """Raises UserError where there is no baseline to take prompts from."""
    config = manifest.collect
    assert config is not None
    if not uses_baseline(manifest):
        return config
    if manifest.baseline is None:
        raise UserError(
            'collect.prompts = "baseline" takes the prompts of [baseline], and there is no such section',
            "add one, or name a file",
        )
    most = [limit for limit in (config.max_prompts, manifest.baseline.max_prompts) if limit is not None]
    baseline = manifest.baseline
    return attrs.evolve(
        config,
        prompts=baseline.prompts,
        max_prompts=min(most),
        columns=baseline.columns,
        skip_unusable=baseline.skip_unusable,
    )


def run(context: Context) -> dict[str, Any]:
    from bitnet_cli.stages.collect_on_workers import Probed, facts_of, gather_on_workers, launcher_of, take_answers
    from bitnet_providers.collect.collect import collect, prepare
    from bitnet_providers.collect.estimate import needs_consent
    from bitnet_providers.contract import servers_of
    from bitnet_providers.probe.probe_before_collecting import with_probe

    tagged, config, raw = context.manifest.teacher, collect_settings(context.manifest), context.folder / "raw"
    assert tagged is not None

    take_answers(context.store, context.manifest.run.name, raw)

    async def prepared(teacher: "Teacher") -> "tuple[Prepared, Outlook, bool]":
        before = prepare(teacher, config, raw, tagged.kind, context.seed)
        outlook = find_outlook(context, teacher, before)
        if outlook.asks:
            before = with_probe(before, config, teacher.capabilities, len(servers_of(teacher)))
        return before, outlook, teacher.capabilities.external

    launched = launcher_of(context.manifest, context.plugins)
    before, outlook, external = context.teacher.ask(prepared)
    question = needs_consent(before.estimate, config, external=external)
    if question is not None:
        context.confirm(question)

    gather = partial(
        collect,
        config=config,
        raw_folder=raw,
        teacher_kind=tagged.kind,
        seed=context.seed,
        on_progress=context.on_progress,
        on_notice=context.notify,
    )

    async def probe_and_collect(teacher: "Teacher") -> dict[str, Any] | Probed:
        verdict, after = await probe_before(context, teacher, outlook, before, raw)
        probe = None if verdict is None else verdict.for_metadata()
        if launched is not None and after.missing:
            return Probed(facts_of(teacher), after, probe)
        return await gather(teacher, before=after, probe=probe)

    summary = context.teacher.ask(probe_and_collect)
    if isinstance(summary, Probed):
        assert launched is not None
        context.teacher.close()  # its memory is the workers' now
        summary = asyncio.run(gather_on_workers(context, config, launched, summary, gather))
    run_folder.write_json(context.folder / run_folder.COLLECTION, summary)
    return summary


def check(manifest: "Manifest", plugins: "Plugins") -> Iterator[Problem]:
    """What the teacher is asked for and does not give."""
    from bitnet_providers.collect.targets_and_capabilities import conversation_problems, not_given
    from bitnet_providers.contract import ProviderError
    from bitnet_providers.prompts.load_prompts import load_inputs

    tagged, config = manifest.teacher, manifest.collect
    teacher = None if tagged is None else plugins.teachers.get(tagged.kind)
    if tagged is None or config is None or teacher is None:
        return
    if manifest.cluster is not None and getattr(tagged.options, "devices", 1) > 1:
        yield Problem(
            "teacher.devices starts workers on this machine, and [cluster] says which workers there are",
            "take teacher.devices out, and set cluster.workers and cluster.gpus_per_worker",
        )
    can = teacher.capabilities_with(tagged.options)
    yield from map(problem_of, not_given(config, teacher.name, can))
    if not can.chat:
        try:
            yield from map(problem_of, conversation_problems(load_inputs(collect_settings(manifest)), can))
        except (ProviderError, UserError):  # a plan says what is wrong with the files
            return


def _baseline(manifest: "Manifest") -> tuple[str, ...]:
    """Its prompts count where they are asked again here."""
    names = ("prompts", "max_prompts", "columns", "skip_unusable")
    return tuple(f"baseline.{each}" for each in names) if uses_baseline(manifest) and manifest.baseline else ()


PACE = tuple(
    f"collect.{name}"
    for name in (
        "concurrency", "requests_per_minute", "tokens_per_minute", "request_timeout_s", "retries", "retry_wait_s",
        "confirm_above_dollars", "confirm_above_tokens",
    )
)  # fmt: skip
"""Settings that change how fast the teacher is asked, not what."""


STAGE = Stage(
    facts=COLLECT,
    run=run,
    writes=(run_folder.RAW, run_folder.COLLECTION),
    unwatched=(run_folder.COLLECTION,),
    sections=("run.seed",),
    check=check,
    dependencies=_baseline,
    ignores=(*run_folder.TEACHER_SPEED, *PACE),
    formats={"raw shard": 1},
    asks_teacher=True,
    keeps_writes=True,
    goes_on_from="raw/**/*",
)
