"""Whom benchmarks score: the student in its runtime, and its teacher as far as it can be reached."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Literal

import attrs

from bitnet_core.benchmarks.contract import Conversation, DocumentScores, NotMeasured, TeacherAccess
from bitnet_core.runtime.contract import Runtime, Sampling, answer


@attrs.frozen(eq=False)
class HeldoutIn:
    """Sums over held-out documents, and what they were measured in."""

    scores: DocumentScores
    where: str


@attrs.define(eq=False)
class StudentSubject:
    """The student as it is deployed."""

    name: str
    _runtime: Runtime
    _heldout: Callable[[], HeldoutIn]
    _teacher: Callable[[], Runtime]
    role: Literal["student"] = attrs.field(default="student", init=False)
    _used: dict[str, None] = attrs.field(factory=dict, init=False)

    def answers(self, conversations: Sequence[Conversation], max_new_tokens: int) -> list[str]:
        runtime = self.runtime()
        sampling = Sampling(max_new_tokens=max_new_tokens)
        return [answer(runtime, messages, sampling).text for messages in conversations]

    def heldout(self) -> DocumentScores:
        found = self._heldout()
        self._used[found.where] = None
        return found.scores

    def runtime(self) -> Runtime:
        self._used[self._runtime.description] = None
        return self._runtime

    def teacher_runtime(self) -> Runtime:
        return self._teacher()


@attrs.define(eq=False)
class TeacherSubject:
    """The teacher: its answers through its provider, its distributions as the traces have them, its model if local."""

    _access: TeacherAccess | None
    _heldout: Callable[[], DocumentScores]
    _open: Callable[[], Runtime]
    role: Literal["teacher"] = attrs.field(default="teacher", init=False)
    _used: dict[str, None] = attrs.field(factory=dict, init=False)

    @property
    def name(self) -> str:
        return "no teacher" if self._access is None else self._access.name

    def answers(self, conversations: Sequence[Conversation], max_new_tokens: int) -> list[str]:
        if self._access is None:
            raise NotMeasured("the manifest names no teacher that could be asked", "add a [teacher] section to it")
        said = self._access.answers(conversations, max_new_tokens)
        self._used[f"the teacher's own answers ({self._access.name})"] = None
        return said

    def heldout(self) -> DocumentScores:
        self._used["its log-probabilities in the traces"] = None
        return self._heldout()

    def runtime(self) -> Runtime:
        runtime = self._open()
        self._used[runtime.description] = None
        return runtime

    def teacher_runtime(self) -> Runtime:
        return self._open()


def used(subject: object) -> list[str]:
    """What `subject` ran in since this was last asked."""
    assert isinstance(subject, StudentSubject | TeacherSubject)
    names = list(subject._used)
    subject._used.clear()
    return names


@contextmanager
def teacher_subject(access: TeacherAccess | None, heldout: Callable[[], DocumentScores]) -> Iterator[TeacherSubject]:
    """The teacher; its model is loaded when a benchmark first wants it, and let go at the end."""
    with ExitStack() as stack:
        loaded: list[Runtime] = []

        def open_model() -> Runtime:
            if access is None:
                raise NotMeasured(
                    "the manifest names no teacher whose model could be loaded",
                    "add a [teacher] section with a model that is on this machine",
                )
            if not loaded:
                from bitnet_core.runtime.torch_runtime import open_torch

                loaded.append(stack.enter_context(open_torch(access.model_folder())))
            return loaded[0]

        yield TeacherSubject(access, heldout, open_model)
