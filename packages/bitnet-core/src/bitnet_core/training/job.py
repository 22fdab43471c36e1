"""What a training is given: the traces, the settings, and where its files lie."""

from pathlib import Path

import attrs

from bitnet_core.config.loss import IntermediateConfig
from bitnet_core.config.student import StudentConfig
from bitnet_core.config.train import TrainConfig
from bitnet_core.training.step import Loss


@attrs.frozen(kw_only=True)
class Job:
    """One training. Paths may be given as strings."""

    data_folder: Path = attrs.field(converter=Path)
    """KD traces."""
    tokenizer_folder: Path = attrs.field(converter=Path)
    """The student's tokenizer."""
    chat_template: Path | None = attrs.field(default=None, converter=attrs.converters.optional(Path))
    """A file with the chat template that the checkpoint's tokenizer has instead of its own."""
    teacher_folder: Path | None = attrs.field(converter=attrs.converters.optional(Path))
    """The weights of a student that starts from its teacher's (``student.init_from``)."""
    calibrated_start: Path | None = attrs.field(default=None, converter=attrs.converters.optional(Path))
    """The checkpoint that the student's calibration has made: it starts from that one instead."""
    intermediate_teacher: Path | None = attrs.field(default=None, converter=attrs.converters.optional(Path))
    """The model that `intermediate` compares inner layers with."""
    checkpoint_folder: Path = attrs.field(converter=Path)
    metrics_file: Path = attrs.field(converter=Path)
    """Logs and trackers write beside it."""
    seed: int
    fingerprint: str
    """Names everything that shapes the training (data, student, loss, settings). Checkpoints with the same one are
    gone on from; those with another belong to another training and are set aside."""
    lineage: str | None = None
    """The same without ``steps`` and ``budget_tokens``: where these are raised, a training with this one is gone on
    from. None: with none."""
    student: StudentConfig
    loss: Loss
    train: TrainConfig
    intermediate: IntermediateConfig | None = None
    """Terms on the inner layers beside `loss`."""
