"""How benchmarks reach the run's teacher: its answers through its provider, its model where it lies on this machine."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bitnet_cli import run_folder
from bitnet_cli.stages.stage import Context
from bitnet_core.benchmarks.contract import Conversation, NotMeasured, TeacherAccess
from bitnet_providers.contract import ProviderError

if TYPE_CHECKING:
    from bitnet_cli.manifest import Manifest
    from bitnet_cli.plugins.catalog import Plugins


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
    from bitnet_providers.spending.costs import dollars, price_of, shown
    from bitnet_providers.spending.tokens import Tokens

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
    """None where the manifest names no teacher. Nothing is opened before a benchmark asks."""
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
