"""``[train]``: steps, batches, learning rates, schedules, checkpoints."""

from typing import Any

import attrs

from bitnet_core.config.evaluate import EvaluateConfig
from bitnet_core.config.loss import TopKOtherConfig
from bitnet_core.config.project import ProjectConfig
from bitnet_core.config.student import StudentConfig
from bitnet_core.settings import not_negative, positive, setting

__all__ = ["EvaluateConfig", "ProjectConfig", "StudentConfig", "TopKOtherConfig", "TrainConfig"]
_open_fraction: Any = attrs.validators.and_(positive, attrs.validators.lt(1.0))
_share: Any = attrs.validators.and_(positive, attrs.validators.le(1.0))
_fraction: Any = attrs.validators.and_(not_negative, attrs.validators.le(1.0))
TERNARY_START, CHECKPOINT_START, RANDOM_START = "ternary", "checkpoint", "random"
"""What a training starts from: codes that are worth keeping, full-precision weights, or chance."""


@attrs.frozen
class _Beginning:
    """What suits a start, where the settings leave it out (docs/recipes.md)."""

    learning_rate: float
    scale_learning_rate: float
    ternary_warmup: float
    """Share of the steps."""


_BEGINNINGS = {
    TERNARY_START: _Beginning(4e-4, 4e-4, 0.0),
    CHECKPOINT_START: _Beginning(1e-3, 4e-3, 0.4),
    RANDOM_START: _Beginning(1e-3, 1e-3, 0.0),
}


@attrs.frozen(kw_only=True)
class TrainConfig:
    """How the student is trained."""

    steps: int = setting(default=200, help="optimizer steps", validator=positive)
    budget_tokens: int | None = setting(
        default=None,
        help="tokens to see at most; the flip is placed by it (none: what `steps` batches hold)",
        validator=attrs.validators.optional(positive),
    )
    flip_fraction: float = setting(
        default=0.8,
        help="activations flip to 4 bits here, of the budget; 1.0: never",
        validator=_fraction,
    )
    batch_size: int = setting(default=8, help="documents a batch", validator=positive)
    accumulation: int = setting(default=1, help="batches an optimizer step", validator=positive)
    max_seq_len: int = setting(default=512, help="positions of a sequence; the rest is cut", validator=positive)
    packing: bool = setting(
        default=False,
        help="put a batch's documents into as few rows of max_seq_len positions as they need, each seen as if it "
        "stood alone: the same gradient with less padding",
    )
    learning_rate: float | None = setting(
        default=None,
        help="peak learning rate of the weights; left out, 4e-4 from a ternary start (calibrated, or ternary already), "
        "1e-3 from any other",
        validator=attrs.validators.optional(positive),
    )
    scale_learning_rate: float | None = setting(
        default=None,
        help="peak learning rate of the log row scales; left out, 4e-4 from a ternary start, 4e-3 from a checkpoint "
        "that becomes ternary while it trains, 1e-3 from random weights",
        validator=attrs.validators.optional(not_negative),
    )
    schedule: str = setting(
        default="cosine",
        help="learning rate after the warm-up: cosine, wsd (constant, then linear), or two_stage (BitNet's: linear, "
        "a third lower and without weight decay from half time on)",
        validator=attrs.validators.in_(("cosine", "wsd", "two_stage")),
    )
    warmup_steps: int = setting(default=10, help="linear warm-up", validator=not_negative)
    decay_fraction: float = setting(default=0.2, help="wsd only: share of the steps that decay", validator=_share)
    final_lr_fraction: float = setting(default=0.1, help="where the schedule ends, of the peak", validator=_fraction)
    ternary_warmup_steps: int | None = setting(
        default=None,
        help="steps over which weights go from full precision to ternary; left out, 40 % of the steps where a "
        "full-precision checkpoint starts by least squares, and none otherwise",
        validator=attrs.validators.optional(not_negative),
    )
    optimizer: str = setting(
        default="adamw",
        help="adamw, or adamw8bit (8-bit moments; pip install 'bitnet-core[8bit]'; one device)",
        validator=attrs.validators.in_(("adamw", "adamw8bit")),
    )
    weight_decay: float = setting(default=0.01, help="AdamW's, on matrices only", validator=not_negative)
    beta2: float = setting(
        default=0.98,
        help="AdamW's second-moment decay",
        validator=_open_fraction,
    )
    clip_norm: float = setting(default=1.0, help="gradient norm is clipped to this", validator=positive)
    precision: str = setting(
        default="auto",
        help="autocast: fp32, bf16, fp16, or auto (bf16 where that is fast, else fp16 on an NVIDIA GPU, else fp32)",
        validator=attrs.validators.in_(("auto", "fp32", "bf16", "fp16")),
    )
    devices: int = setting(
        default=1, help="processes that train together, one a GPU; batch_size is what they share", validator=positive
    )
    gradient_checkpointing: bool = setting(
        default=False, help="compute activations again in the backward pass: a third more time, far less memory"
    )
    compile: bool = setting(default=False, help="compile the decoder layers (torch.compile)")
    deterministic: bool = setting(
        default=False, help="the same bits on a GPU in every run, slower; a CPU always gives them"
    )
    track: tuple[str, ...] = setting(
        default=(),
        help='send metrics to "tensorboard", "wandb" too; files under logs/',
        validator=attrs.validators.deep_iterable(attrs.validators.in_(("tensorboard", "wandb"))),
    )
    checkpoint_every: int = setting(
        default=100, help="steps between checkpoints; one at the end too", validator=positive
    )
    keep_checkpoints: int = setting(
        default=2, help="checkpoints kept, newest first; the best by held-out KL stays too", validator=positive
    )
    validate_every: int = setting(default=50, help="steps between validations; 0: at the end", validator=not_negative)
    validation_documents: int = setting(default=8, help="held-out documents used while training", validator=positive)
    log_every: int = setting(default=5, help="steps between lines of logs/metrics.jsonl", validator=positive)

    def __attrs_post_init__(self) -> None:
        if self.devices > 1 and self.optimizer == "adamw8bit":
            raise ValueError('optimizer = "adamw8bit" runs on one device: set devices = 1, or optimizer = "adamw"')
        if self.devices > self.batch_size:
            raise ValueError(f"batch_size = {self.batch_size} is shared by devices = {self.devices}: raise batch_size")

    def without_effect(self) -> list[str]:
        """What is set and changes nothing, as a line; empty where nothing is."""
        usual = attrs.fields(TrainConfig).decay_fraction.default
        if self.schedule == "wsd" or self.decay_fraction == usual:
            return []
        return [
            f"train.decay_fraction = {self.decay_fraction}: without effect, since train.schedule = "
            f'"{self.schedule}" decays from the warm-up on (wsd has it)'
        ]

    def begun_from(self, start: str) -> "TrainConfig":
        """These settings with what was left out filled in: `start` is one of TERNARY_START, CHECKPOINT_START, ..."""
        suits = _BEGINNINGS[start]
        left_out: dict[str, Any] = {
            "learning_rate": suits.learning_rate,
            "scale_learning_rate": suits.scale_learning_rate,
            "ternary_warmup_steps": round(suits.ternary_warmup * self.steps),
        }
        return attrs.evolve(self, **{name: value for name, value in left_out.items() if getattr(self, name) is None})
