"""The run's teacher: opened when a stage first asks it, on one event loop, closed when no stage needs it any more."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from bitnet_cli.errors import Problem, UserError
from bitnet_providers.contract import Teacher, TeacherPlugin

Answer = TypeVar("Answer")


def no_folder(plugin: TeacherPlugin, wanted_by: str) -> Problem:
    """For a setting that wants the folder of a teacher that has none."""
    return Problem(
        f'{wanted_by} = "teacher", but teacher "{plugin.name}" has no model folder on this machine',
        f"set {wanted_by} to the folder of a Hugging Face model or tokenizer",
    )


class TeacherHandle:
    """A teacher that costs nothing until it is asked.

    SDK clients and local batching are bound to the event loop they were first used on, so all questions of a run go
    through one loop.
    """

    def __init__(self, plugin: TeacherPlugin | None, options: Any, *, skip_external: bool) -> None:
        """`plugin` is None where the manifest has no ``[teacher]``."""
        self.plugin = plugin
        self.options = options
        self.skip_external = skip_external
        self._runner: asyncio.Runner | None = None
        self._teacher: Teacher | None = None

    @property
    def external(self) -> bool:
        """Whether a call leaves this machine or costs money."""
        return self.plugin is not None and self.plugin.capabilities_with(self.options).external

    def ask(self, question: Callable[[Teacher], Awaitable[Answer]]) -> Answer:
        """Run ``question(teacher)`` to its end.

        Raises ProviderError, or UserError for a call that SKIP_EXTERNAL bars.
        """
        plugin = self._plugin_for("this stage")
        if self.skip_external and self.external:
            raise UserError(
                f'SKIP_EXTERNAL=1 forbids calling teacher "{plugin.name}", which leaves this machine',
                "unset SKIP_EXTERNAL to allow it",
            )
        if self._runner is None:
            self._runner = asyncio.Runner()
        runner = self._runner

        async def open_and_ask() -> Answer:
            if self._teacher is None:
                self._teacher = plugin.open(self.options)
            return await question(self._teacher)

        return runner.run(open_and_ask())

    def model_folder(self, wanted_by: str) -> Path:
        """The folder with the teacher's weights and tokenizer. Raises UserError where the teacher has none.

        `wanted_by` is the setting that asks for it, e.g. ``project.tokenizer``.
        """
        plugin = self._plugin_for(f'{wanted_by} = "teacher"')
        if plugin.model_folder is None:
            problem = no_folder(plugin, wanted_by)
            raise UserError(problem.why, problem.fix)
        return plugin.model_folder(self.options)

    def _plugin_for(self, who: str) -> TeacherPlugin:
        if self.plugin is None:
            raise UserError(f"{who} needs a teacher", 'add [teacher] with kind = "local" (or another) to the manifest')
        return self.plugin

    def close(self) -> None:
        """Let the teacher's memory and connections go; a later question opens it again."""
        runner, teacher = self._runner, self._teacher
        self._runner = self._teacher = None
        if runner is None:
            return
        try:
            if teacher is not None:
                runner.run(teacher.aclose())
        finally:
            runner.close()
