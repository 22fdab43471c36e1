"""baseline: the teacher answers the evaluation prompts greedily; its speed is what a student is compared with."""

from typing import Any

from bitnet_cli import run_folder
from bitnet_cli.manifest.stage_needs import BASELINE
from bitnet_cli.stages.stage import Context, Stage


def run(context: Context) -> dict[str, Any]:
    from bitnet_providers.baseline.run_baseline import run_baseline

    config, tagged = context.manifest.baseline, context.manifest.teacher
    assert config is not None
    assert tagged is not None
    # A model here costs nothing, and what it did before it was stopped is another measurement.
    journal = context.folder / run_folder.BASELINE_JOURNAL if context.teacher.external else None
    baseline = context.teacher.ask(
        lambda teacher: run_baseline(
            teacher,
            config,
            context.on_progress,
            journal_folder=journal,
            resume=context.resume,
            teacher_kind=tagged.kind,
        )
    )
    run_folder.write_json(context.folder / run_folder.BASELINE, baseline)
    speed, refused = baseline["tokens_per_second"], len(baseline["refused"])
    told = "no speed: it counts no tokens" if speed is None else f"{speed:.1f} tok/s ({baseline['clock']})"
    return {
        "headline": f"{len(baseline['answers'])} answers, {told}" + (f"; {refused} refused" if refused else ""),
        "answers": len(baseline["answers"]),
        "tokens_per_second": speed,
        "warnings": [
            *(f'prompt "{each["id"]}" was refused: {each["reason"]}' for each in baseline["refused"]),
            *([f"not greedy: baseline.temperature = {config.temperature:g}"] if config.temperature else []),
        ],
    }


PATIENCE = (
    *("baseline.retries", "baseline.retry_wait_s"),
    *("teacher.timeout_s", "teacher.connect_timeout_s", "teacher.api_key_env"),
)
"""Settings that change how a teacher is reached, not what it answers nor how fast."""


STAGE = Stage(
    facts=BASELINE,
    run=run,
    writes=(run_folder.BASELINE,),
    ignores=PATIENCE,
    asks_teacher=True,
    keeps_writes=True,
    goes_on_from=f"{run_folder.BASELINE_JOURNAL}/*",
)
