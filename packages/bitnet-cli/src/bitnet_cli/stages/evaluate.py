"""evaluate: the student on held-out documents and benchmarks, beside its teacher and the simplest models."""

import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from bitnet_cli import run_folder
from bitnet_cli.errors import Problem, UserError, problem_of
from bitnet_cli.manifest.stage_needs import EVALUATE
from bitnet_cli.stages import tokenizer_and_start
from bitnet_cli.stages.stage import Context, Stage

if TYPE_CHECKING:
    from bitnet_cli.manifest import Manifest
    from bitnet_cli.plugins.catalog import Plugins


def run(context: Context) -> dict[str, Any]:
    manifest = context.manifest
    assert manifest.student is not None
    assert manifest.train is not None
    assert manifest.evaluate is not None
    from bitnet_cli.stages.benchmark_consent import consent_wanted
    from bitnet_cli.stages.benchmark_teacher import teacher_access

    question = consent_wanted(context)
    if question is not None:
        context.confirm(question)
    tokenizer, start = tokenizer_and_start.tokenizer_folder(context), tokenizer_and_start.starting_weights(context)
    from bitnet_core.config.calibration import calibrated_student
    from bitnet_core.evaluation.evaluate import Evaluation, evaluate
    from bitnet_core.model.choose_checkpoint import latest_checkpoint

    calibrated, student = tokenizer_and_start.calibrated_start(context), tokenizer_and_start.student_config(manifest)
    baseline = run_folder.read_json(context.folder / run_folder.BASELINE)
    if baseline is None:
        context.notify("no teacher baseline: no samples, no speed, no QEI (the baseline stage makes it)")
    evaluation = Evaluation(
        checkpoint=latest_checkpoint(context.folder / "checkpoints"),
        data_folder=context.folder / "data",
        tokenizer_folder=tokenizer,
        teacher_folder=start,
        baseline=baseline,
        student=student if calibrated is None else calibrated_student(student, calibrated),
        precision=manifest.train.precision,
        config=manifest.evaluate.settings,
        seed=context.seed,
        benchmarks={
            name: context.plugins.require_benchmark(name).load(options)
            for name, options in manifest.evaluate.options.items()
        },
        teacher=teacher_access(context),
        run=context.folder,
    )
    report = evaluate(evaluation, context.on_progress)
    run_folder.write_json(context.folder / run_folder.EVALUATION, report)
    kl, unigram = report["heldout_kl"], report["unigram_kl"]
    return {
        "headline": headline(report),
        "heldout_kl": kl,
        "unigram_kl": unigram,
        "warnings": [
            f"{name} of the {role} is absent: {reason}"
            for name, entry in report["benchmarks"].items()
            for role, reason in entry["absent"].items()
        ],
    }


def check(manifest: "Manifest", plugins: "Plugins") -> Iterator[Problem]:
    """What the student, the benchmarks and the runtime lack: a folder, a package, a file."""
    from bitnet_core.runtime.open import RUNTIMES

    assert manifest.evaluate is not None
    yield from tokenizer_and_start.student_problems(manifest, plugins)
    runtime = RUNTIMES[manifest.evaluate.settings.runtime]
    if runtime.name != "torch":
        what = f'evaluate.runtime = "{runtime.name}"'
        yield from tokenizer_and_start.only_llama(manifest, what, 'set evaluate.runtime = "torch"')
    missing = [module for module in runtime.requires if importlib.util.find_spec(module) is None]
    if missing:
        yield Problem(f'evaluate.runtime = "{runtime.name}" needs {" and ".join(missing)}', runtime.install)
    for name, options in manifest.evaluate.options.items():
        try:
            plugin = plugins.require_benchmark(name)
        except UserError as error:
            yield problem_of(error).within("evaluate.benchmarks")
            continue
        yield from (problem_of(each).within(f"evaluate.{name}") for each in plugin.check(options))


def dependencies(manifest: "Manifest") -> tuple[str, ...]:
    """The teacher counts where a benchmark asks it for more than its traces say."""
    teacher = tokenizer_and_start.teacher_of_start(manifest)
    asked = manifest.evaluate is not None and not set(manifest.evaluate.options) <= {"heldout", "agreement"}
    return ("teacher",) if asked and manifest.teacher is not None else teacher


def headline(report: dict[str, Any]) -> str:
    """The KL beside the unigram's; without one the perplexities, and why there is no KL."""
    kl, unigram = report["heldout_kl"], report["unigram_kl"]
    if kl is not None:
        return f"{report['split']} KL {kl:.3f} nats" + (f", {kl / unigram:.2f} of the unigram's" if unigram else "")
    student, teacher = (
        "unknown" if report[key] is None else f"{report[key]:.2f}" for key in ("perplexity", "teacher_perplexity")
    )
    return f"{report['split']} perplexity {student} (teacher {teacher}); no KL: {report['kl_missing']}"


STAGE = Stage(
    facts=EVALUATE,
    run=run,
    reads=(run_folder.CHECKPOINTS, run_folder.TRACES, run_folder.CALIBRATED),
    reads_if_there=(run_folder.BASELINE,),
    writes=(run_folder.EVALUATION,),
    sections=("project.tokenizer", "student", "train.precision", "run.seed"),
    check=check,
    dependencies=dependencies,
    ignores=(*run_folder.TEACHER_SPEED, "teacher.device", "teacher.dtype"),
    formats={"KD shard": 2, "checkpoint": 1},
)
