"""The manifest's ``[loss.intermediate]`` table. Importing this loads no torch."""

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
