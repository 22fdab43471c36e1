"""evaluate: the student on held-out documents and benchmarks, beside its teacher and the simplest models."""

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnet_cli import run_folder
from bitnet_cli.errors import Problem, UserError, problem_of
from bitnet_cli.manifest.stage_needs import EVALUATE
from bitnet_cli.stages import tokenizer_and_start
from bitnet_cli.stages.stage import Context, Stage
from bitnet_core.benchmarks.contract import Conversation, NotMeasured, TeacherAccess
from bitnet_providers.contract import ProviderError

if TYPE_CHECKING:
    from bitnet_cli.manifest import Manifest
    from bitnet_cli.plugins.catalog import Plugins


def run(context: Context) -> dict[str, Any]:
    manifest = context.manifest
    assert manifest.student is not None
    assert manifest.train is not None
    assert manifest.evaluate is not None
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


def answers_asked(manifest: "Manifest", plugins: "Plugins") -> Iterator[tuple[str, int, int]]:
    """(benchmark, answers, tokens of all at most) that are asked of the teacher.

    A file that can't be read is found by the stage's check.
    """
    from bitnet_core.errors import CoreError

    assert manifest.evaluate is not None
    for name, options in manifest.evaluate.options.items():
        plugin = plugins.benchmarks.get(name)
        if plugin is None or plugin.asks is None:
            continue
        try:
            answers, tokens = plugin.asks(options)
        except CoreError:
            continue
        yield name, answers, answers * tokens


def consent_wanted(context: Context) -> str | None:
    """What to ask before benchmarks ask an external teacher for more than a collection might; None: go on."""
    from bitnet_providers.config import CollectConfig
    from bitnet_providers.spending.budget import dollars, price_of, shown
    from bitnet_providers.spending.token_counts import Tokens

    manifest, handle = context.manifest, context.teacher
    if not handle.external or handle.skip_external:
        return None
    asked = list(answers_asked(manifest, context.plugins))
    answers, tokens = sum(each[1] for each in asked), sum(each[2] for each in asked)
    config = manifest.collect or CollectConfig()
    price = price_of(config.prices, getattr(handle.options, "model", None))
    cost = ""
    if price is not None:
        amount = dollars(price, Tokens(0, tokens))
        if amount <= config.confirm_above_dollars:
            return None
        cost, limit = f", {shown(amount)}", f"collect.confirm_above_dollars = {config.confirm_above_dollars:g}"
    elif tokens > config.confirm_above_tokens:
        limit = f"collect.confirm_above_tokens = {config.confirm_above_tokens}"
    else:
        return None
    return (
        f"The benchmarks may take more than {limit}: {answers:,} answers of the teacher, at most {tokens:,} "
        f"tokens{cost}, beside the prompts; what {run_folder.BENCHMARK_JOURNAL} has is not asked again. "
        "Ask the teacher?"
    )


def teacher_access(context: Context) -> TeacherAccess | None:
    """How benchmarks reach the teacher: its answers through its provider, its model where it lies on this machine.

    None where the manifest names no teacher. Nothing is opened before a benchmark asks.
    """
    tagged, handle = context.manifest.teacher, context.teacher
    if tagged is None or handle.plugin is None:
        return None
    kind, plugin = tagged.kind, handle.plugin

    def answers(conversations: Sequence[Conversation], max_new_tokens: int) -> list[str]:
        from bitnet_providers.baseline.greedy_answers import greedy_answers

        if handle.external and handle.skip_external:
            raise NotMeasured("SKIP_EXTERNAL=1, and the teacher is external")
        journal = context.folder / run_folder.BENCHMARK_JOURNAL if handle.external else None
        try:
            return handle.ask(
                lambda teacher: greedy_answers(
                    teacher,
                    conversations,
                    max_new_tokens,
                    config=context.manifest.baseline,
                    journal_folder=journal,
                    teacher_kind=kind,
                )
            )
        except ProviderError as error:  # the student's figures are worth having all the same
            raise NotMeasured(f"the teacher could not be asked: {error}") from error

    def model_folder() -> Path:
        if plugin.model_folder is None:
            raise NotMeasured(f'a teacher of kind "{kind}" has no weights on this machine')
        try:
            return plugin.model_folder(tagged.options)
        except ProviderError as error:
            raise NotMeasured(f"the teacher's weights can't be had: {error}") from error

    model = getattr(tagged.options, "model", None)
    return TeacherAccess(
        name=model if isinstance(model, str) and model else kind, answers=answers, model_folder=model_folder
    )


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
