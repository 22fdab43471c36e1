"""How benchmarks reach the run's teacher: its answers through its provider, its model where it lies on this machine."""

from collections.abc import Sequence
from pathlib import Path

from bitnet_cli import run_folder
from bitnet_cli.stages.stage import Context
from bitnet_core.benchmarks.contract import Conversation, NotMeasured, TeacherAccess
from bitnet_providers.contract import ProviderError


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
