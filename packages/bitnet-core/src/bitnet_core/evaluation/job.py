"""What an evaluation is given: the checkpoint, what it is measured on, and against what."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs

from bitnet_core.benchmarks.contract import Benchmark, TeacherAccess
from bitnet_core.config.evaluate import EvaluateConfig
from bitnet_core.config.student import StudentConfig

OnProgress = Callable[[int, int, str], None]


@attrs.frozen(kw_only=True, eq=False)
class Evaluation:
    """What is measured, and against what."""

    checkpoint: Path
    data_folder: Path
    """KD traces."""
    tokenizer_folder: Path
    """The student's tokenizer."""
    teacher_folder: Path | None
    """The weights that the student started from; None: random ones."""
    baseline: Mapping[str, Any] | None
    """The teacher's greedy baseline; without one there are no samples beside it, no teacher speed, and no
    quality-efficiency index."""
    student: StudentConfig
    precision: str
    """That of the training."""
    config: EvaluateConfig
    seed: int
    benchmarks: Mapping[str, Benchmark] | None = None
    """Those of `EvaluateConfig.benchmarks`, loaded; None: the held-out ones."""
    teacher: TeacherAccess | None = None
    """Asked by benchmarks that need more of it than its traces."""
    run: Path | None = None
    """The run folder: an export in it is used, where the runtime needs one."""
