"""collect: what the teacher says (sampling) and how likely it finds given text (scoring), in its own tokens."""

from typing import TYPE_CHECKING, Any

from bitnet_cli.stage import Context, Stage
from bitnet_cli.stages import names
from bitnet_cli.stages.probe import probe_before

if TYPE_CHECKING:
    from bitnet_providers.contract import Teacher


def run(context: Context) -> dict[str, Any]:
    from bitnet_providers.collect import collect

    config, tagged = context.manifest.collect, context.manifest.teacher
    assert config is not None
    assert tagged is not None

    async def probe_and_collect(teacher: "Teacher") -> dict[str, Any]:
        verdict = await probe_before(context, teacher)
        probe = None if verdict is None else verdict.for_metadata()
        return await collect(
            teacher, config, context.folder / "raw", tagged.kind, context.seed, context.on_progress, probe=probe
        )

    return context.teacher.ask(probe_and_collect)


STAGE = Stage(
    name="collect",
    run=run,
    writes=(names.RAW,),
    sections=("teacher", "collect", "run.seed"),
    ignores=(*names.TEACHER_SPEED, "collect.concurrency"),
    formats={"raw shard": 1},
    asks_teacher=True,
    keeps_writes=True,
    goes_on_from="raw/**/*",
)
