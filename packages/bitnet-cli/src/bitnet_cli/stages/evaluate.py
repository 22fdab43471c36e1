"""evaluate: the student on held-out documents, beside the teacher and the simplest models in its place."""

from typing import Any

from bitnet_cli import run_folder
from bitnet_cli.stage import Context, Stage
from bitnet_cli.stages import names, places


def run(context: Context) -> dict[str, Any]:
    manifest = context.manifest
    assert manifest.student is not None
    assert manifest.train is not None
    assert manifest.evaluate is not None
    tokenizer, start = places.tokenizer_folder(context), places.starting_weights(context)
    from bitnet_core.evaluation.evaluate import evaluate
    from bitnet_core.training.checkpoint import latest_checkpoint

    baseline = run_folder.read_json(context.folder / names.BASELINE)
    if baseline is None:
        context.say("no teacher baseline: no samples, no speed, no QEI (the baseline stage makes it)")
    report = evaluate(
        checkpoint=latest_checkpoint(context.folder / "checkpoints"),
        data_folder=context.folder / "data",
        tokenizer_folder=tokenizer,
        teacher_folder=start,
        baseline=baseline,
        student=manifest.student,
        precision=manifest.train.precision,
        config=manifest.evaluate,
        seed=context.seed,
        on_progress=context.on_progress,
    )
    run_folder.write_json(context.folder / names.EVALUATION, report)
    kl, unigram = report["heldout_kl"], report["unigram_kl"]
    return {
        "headline": headline(report),
        "heldout_kl": kl,
        "unigram_kl": unigram,
    }


def headline(report: dict[str, Any]) -> str:
    """The held-out KL beside the unigram's; without one the perplexities, and why there is no KL."""
    kl, unigram = report["heldout_kl"], report["unigram_kl"]
    if kl is not None:
        return f"held-out KL {kl:.3f} nats" + (f", {kl / unigram:.2f} of the unigram's" if unigram else "")
    student, teacher = (
        "unknown" if report[key] is None else f"{report[key]:.2f}" for key in ("perplexity", "teacher_perplexity")
    )
    return f"held-out perplexity {student} (teacher {teacher}); no KL: {report['kl_missing']}"


STAGE = Stage(
    name="evaluate",
    run=run,
    reads=(names.CHECKPOINTS, names.TRACES),
    reads_if_there=(names.BASELINE,),
    writes=(names.EVALUATION,),
    sections=("project.tokenizer", "student", "train.precision", "evaluate", "run.seed"),
    dependencies=places.teacher_of_start,
    ignores=(*names.TEACHER_SPEED, "teacher.device", "teacher.dtype"),
    formats={"KD shard": 1, "checkpoint": 1},
)
