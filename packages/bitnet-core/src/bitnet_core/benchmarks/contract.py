"""What a benchmark is given and what it gives. Importing this loads no torch.

A benchmark is a function from a `Subject` (the student, then the teacher) to a `Result`. It gives one figure for each
item, not a mean: the value, the number of items and the bootstrap interval are made of them in one place, for all.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import attrs
import numpy as np
from numpy.typing import NDArray

from bitnet_core.errors import CoreError
from bitnet_core.runtime.contract import Message, Runtime

if TYPE_CHECKING:
    pass


Role = Literal["student", "teacher"]
Conversation = Sequence[Message]
Quality = Literal["value", "inverse", "none"]
"""What the quality-efficiency index may take of a score: the value itself (higher is better, 0 is worthless), 1/value
(lower is better, never 0, as a perplexity), or nothing."""


class NotMeasured(CoreError):  # noqa: N818 -- no fault: the report says why a figure is absent
    """This benchmark can't measure this subject. Its text is the reason, which the report gives."""


def _floats(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


@attrs.frozen(kw_only=True)
class Score:
    """Σ sums / Σ counts over the items, or its exponential."""

    sums: tuple[float, ...] = attrs.field(converter=_floats)
    """One for each item: 1 or 0 of an answer, nats of a document."""
    counts: tuple[float, ...] | None = attrs.field(default=None, converter=attrs.converters.optional(_floats))
    """What each item counts for, such as its tokens; None: one each, so the score is a mean."""
    exp: bool = False
    """The score is exp of the ratio: a perplexity of nats and tokens."""
    unit: str = ""
    quality: Quality = "value"
    chance: float | None = None
    """What guessing would score; where its interval holds that, a score says nothing, and no index is made of it."""

    def __attrs_post_init__(self) -> None:
        if self.counts is not None and len(self.counts) != len(self.sums):
            raise CoreError(
                f"a score needs one count for each sum, not {len(self.counts)} for {len(self.sums)}",
                "give one count for each sum, or no counts",
            )


@attrs.frozen(kw_only=True)
class AggregateScore:
    """A score that is no ratio of sums (F1 of a corpus, BLEU): a function of all items together."""

    items: tuple[Any, ...] = attrs.field(converter=tuple)
    aggregate: Callable[[list[Any]], float]
    samples: int | None = None
    """Resamples at most, where the function takes long; None: as the evaluation says."""
    unit: str = ""
    quality: Quality = "value"


@attrs.frozen(kw_only=True)
class Result:
    """What a benchmark gives of one subject."""

    scores: Mapping[str, Score | AggregateScore]
    """Score's name → its figures. `evaluate.qei_quality` names one as ``benchmark.score``."""
    details: Any = None
    """Plain JSON values that go into the report's file: answers, settings, versions."""


class Subject(Protocol):
    """The student or the teacher. What can't be had of it raises `NotMeasured`."""

    @property
    def role(self) -> Role: ...

    @property
    def name(self) -> str:
        """The checkpoint, or the teacher's model."""
        ...

    def answers(self, conversations: Sequence[Conversation], max_new_tokens: int) -> list[str]:
        """A greedy answer to each conversation, without special tokens. A hosted teacher is paid for them, once."""
        ...

    def heldout(self) -> "DocumentScores":
        """The sums over the held-out documents; measured once, whoever asks."""
        ...

    def teacher_runtime(self) -> Runtime:
        """The teacher's model, loaded, whoever this is: what it thinks of a text that this one wrote."""
        ...

    def runtime(self) -> Runtime:
        """The model itself, loaded, to be asked for text; some runtimes have ``model`` and ``tokenizer`` too."""
        ...


Benchmark = Callable[[Subject], Result]
"""Raises `NotMeasured` for a subject that it can't score, and CoreError for what the user must mend."""


@attrs.frozen(kw_only=True)
class TeacherAccess:
    """How the evaluation reaches the teacher; who composes the run hands it in."""

    name: str
    answers: Callable[[Sequence[Conversation], int], list[str]]
    """As `Subject.answers`. Raises `NotMeasured`."""
    model_folder: Callable[[], Path]
    """Weights and tokenizer on this machine. Raises `NotMeasured` for a hosted teacher."""


@attrs.frozen(eq=False)
class DocumentScores:
    """Sums over each held-out document's positions; arrays are float64 [documents] where nothing else is said."""

    kl: NDArray[np.float64]
    """Σ KL(teacher ‖ student) at τ = 1, nats: over the K+other buckets, or, of sampled targets, its unbiased estimate
    over the whole vocabulary."""
    agreement: NDArray[np.float64]
    """How often the student's most likely token is the teacher's."""
    top1_positions: NDArray[np.float64]
    """Where the teacher's most likely token is known: all KD positions, and none of sampled targets."""
    kd_positions: NDArray[np.float64]
    nll: NDArray[np.float64]
    """Σ −log p_student(token that stands there), nats."""
    teacher_nll: NDArray[np.float64]
    """Σ −log p_teacher(token that stands there), nats, over the same positions."""
    scored_positions: NDArray[np.float64]
    reliability: NDArray[np.float64]
    """float64 [documents, SUMS]: the student's confidence and how often it is right, over the scored positions."""
    teacher_reliability: NDArray[np.float64]
    """The teacher's, where its most likely token is known as well."""
