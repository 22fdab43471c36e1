"""collect: what the teacher says (sampling) and how likely it finds given text (scoring), in its own tokens."""

from typing import Any

from bitnet_cli.stage import Context, Stage
from bitnet_cli.stages import names


def run(context: Context) -> dict[str, Any]:
    from bitnet_providers.collect import collect

    config, tagged = context.manifest.collect, context.manifest.teacher
    assert config is not None
    assert tagged is not None
    return context.teacher.ask(
        lambda teacher: collect(teacher, config, context.folder / "raw", tagged.kind, context.seed, context.on_progress)
    )


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
