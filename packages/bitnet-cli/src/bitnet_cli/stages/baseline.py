"""baseline: the teacher answers the evaluation prompts greedily; its speed is what a student is compared with."""

from typing import Any

from bitnet_cli import run_folder
from bitnet_cli.stage import Context, Stage
from bitnet_cli.stages import names


def run(context: Context) -> dict[str, Any]:
    from bitnet_providers.baseline import run_baseline

    config = context.manifest.baseline
    assert config is not None
    baseline = context.teacher.ask(lambda teacher: run_baseline(teacher, config, context.on_progress))
    run_folder.write_json(context.folder / names.BASELINE, baseline)
    speed = baseline["tokens_per_second"]
    return {
        "headline": f"{len(baseline['answers'])} answers, {speed:.1f} tok/s",
        "answers": len(baseline["answers"]),
        "tokens_per_second": speed,
    }


STAGE = Stage(
    name="baseline",
    run=run,
    writes=(names.BASELINE,),
    sections=("teacher", "baseline"),
    asks_teacher=True,
    keeps_writes=True,
)
