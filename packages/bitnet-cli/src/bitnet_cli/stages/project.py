"""project: the teacher's raw shards become KD traces in the student's tokens."""

from typing import Any

import attrs

from bitnet_cli import run_folder
from bitnet_cli.manifest.stage_needs import PROJECT
from bitnet_cli.stages import tokenizer_and_start
from bitnet_cli.stages.stage import Context, Stage


def run(context: Context) -> dict[str, Any]:
    config = context.manifest.project
    assert config is not None
    folder, template = tokenizer_and_start.tokenizer_folder(context), tokenizer_and_start.chat_template(context)
    from bitnet_core.projection.project import project

    summary = project(
        context.folder / "raw",
        context.folder / "data",
        folder,
        config if template is None else attrs.evolve(config, chat_template=str(template)),
        context.seed,
        context.on_progress,
    )
    headline = f"{summary['rows']:,} positions, {summary['kd_positions']:,} with KD"
    return {"headline": headline} | summary


STAGE = Stage(
    facts=PROJECT,
    run=run,
    reads=(run_folder.RAW,),
    writes=(run_folder.TRACES,),
    sections=("run.seed",),
    check=tokenizer_and_start.tokenizer_problems,
    dependencies=tokenizer_and_start.teacher_of_tokenizer,
    ignores=(*run_folder.TEACHER_SPEED, "teacher.device", "teacher.dtype"),
    formats={"raw shard": 1, "KD shard": 2},
)
