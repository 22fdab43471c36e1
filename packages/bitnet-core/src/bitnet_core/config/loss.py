"""``[loss]`` and ``[loss.intermediate]``: one table of options for each loss."""

import math
from typing import Any

import attrs

from bitnet_core.settings import setting


def finite_not_negative(_instance: Any, attribute: "attrs.Attribute[Any]", value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{attribute.name} must be a finite number, 0 or above, not {value}")


def _finite_positive(_: Any, __: Any, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"must be a finite number above 0, not {value}")


@attrs.frozen(kw_only=True)
class IntermediateConfig:
    """What the student's inner layers are held to, beside the loss: those of a teacher on this machine (BitDistill).

    Layers are counted from 0; -1 is the last.
    """

    hidden_weight: float = setting(
        default=0.0, help="weight of the distance between layer outputs", validator=finite_not_negative
    )
    hidden_distance: str = setting(
        default="mse",
        help="mse (mean squared difference) or cosine (1 - cosine)",
        validator=attrs.validators.in_(("mse", "cosine")),
    )
    student_layers: tuple[int, ...] = setting(
        default=(), help="layers whose outputs are compared; left out, all of the student's"
    )
    teacher_layers: tuple[int, ...] = setting(
        default=(), help="the teacher's layer for each of student_layers; left out, those at the same depth"
    )
    relation_weight: float = setting(
        default=0.0,
        help="weight of the KL between relations of queries, of keys and of values (MiniLM v2)",
        validator=finite_not_negative,
    )
    relation_student_layer: int = setting(default=-1, help="the student's layer whose relations are compared")
    relation_teacher_layer: int = setting(default=-1, help="the teacher's")
    relation_heads: int | None = setting(
        default=None,
        help="heads into which queries, keys and values are split anew; left out, the student's key/value heads",
        validator=attrs.validators.optional(attrs.validators.gt(0)),
    )
    relation_temperature: float = setting(
        default=0.1, help="temperature of the cosines before their softmax", validator=_finite_positive
    )

    def __attrs_post_init__(self) -> None:
        if not self.hidden_weight and not self.relation_weight:
            raise ValueError("nothing is compared: set hidden_weight or relation_weight above 0, or take the table out")
        if len(self.student_layers) != len(self.teacher_layers):
            raise ValueError(
                f"student_layers names {len(self.student_layers)} layers and teacher_layers "
                f"{len(self.teacher_layers)}: give each student layer its teacher layer, or leave both out"
            )


def _positive_finite(_instance: Any, attribute: "attrs.Attribute[Any]", value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{attribute.name} must be a finite number above 0, not {value}")


def _open_fraction(_instance: Any, attribute: "attrs.Attribute[Any]", value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{attribute.name} must be between 0 and 1, not {value}")


@attrs.frozen(kw_only=True)
class KDLossConfig:
    """The settings that all losses of this package share."""

    ce_weight: float = setting(
        default=0.1, help="weight of the cross-entropy on the tokens of the answer", validator=finite_not_negative
    )
    format_weight: float = setting(
        default=0.1,
        help="weight of the extra cross-entropy on structural tokens (JSON, code fences)",
        validator=finite_not_negative,
    )
    chunk_tokens: int = setting(
        default=256,
        help="token positions whose logits exist at a time; fewer: less memory, more: fewer passes over the head",
        validator=_positive_finite,
    )
    intermediate: IntermediateConfig | None = setting(
        default=None, help="terms on the inner layers, for a teacher on this machine (docs/losses.md)"
    )


def _shared_last(_: type, fields: "list[attrs.Attribute[Any]]") -> "list[attrs.Attribute[Any]]":
    """A loss's own settings come first in docs/manifest.md."""
    return sorted(fields, key=lambda field: field.name in attrs.fields_dict(KDLossConfig))


@attrs.frozen(kw_only=True, field_transformer=_shared_last)
class BucketsConfig(KDLossConfig):
    """Of the losses that temper the K + 1 buckets of both sides."""

    tau: float = setting(
        default=1.0,
        help="temperature of both bucketed distributions; the KD term is multiplied by its square",
        validator=_positive_finite,
    )


@attrs.frozen(kw_only=True, field_transformer=_shared_last)
class TopKOtherConfig(BucketsConfig):
    """KL over the teacher's top-K and the rest, both tempered, + CE on the answer + CE on structural tokens."""


@attrs.frozen(kw_only=True, field_transformer=_shared_last)
class ReverseKLConfig(BucketsConfig):
    """As topk_other, with the KL the other way round: the student is kept from what the teacher doesn't say."""


@attrs.frozen(kw_only=True, field_transformer=_shared_last)
class JensenShannonConfig(BucketsConfig):
    """As topk_other, with the generalised Jensen-Shannon divergence, which is bounded."""

    beta: float = setting(
        default=0.5,
        help="the teacher's share in the mixture that both sides are compared with: near 0 forward KL, near 1 reverse",
        validator=_open_fraction,
    )


@attrs.frozen(kw_only=True, field_transformer=_shared_last)
class TemperedConfig(KDLossConfig):
    """KL over the top-K and the rest of both whole distributions, tempered (collect.targets = "tempered"), + CE."""

    tau: float = setting(
        default=2.0,
        help="temperature of both whole distributions: collect.log_z_tau; the KD term is multiplied by its square",
        validator=_positive_finite,
    )


@attrs.frozen(kw_only=True)
class SampledConfig(KDLossConfig):
    """Cross-entropy of the teacher's draws (collect.targets = "sampled"), + CE on the answer and structural tokens."""
