"""Options of the loss ``topk_other``: the manifest's ``[loss]`` table. Importing this loads no torch."""

import math
from typing import Any

import attrs

from bitnet_core.settings import setting


def _positive_finite(_instance: Any, attribute: "attrs.Attribute[Any]", value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{attribute.name} must be a finite number above 0, not {value}")


def _finite_not_negative(_instance: Any, attribute: "attrs.Attribute[Any]", value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{attribute.name} must be a finite number, 0 or above, not {value}")


@attrs.frozen(kw_only=True)
class TopKOtherConfig:
    """KL over the teacher's top-K and the rest, both tempered, + CE on the answer + CE on structural tokens."""

    tau: float = setting(
        default=1.0,
        help="temperature of both bucketed distributions; the KD term is multiplied by its square",
        validator=_positive_finite,
    )
    ce_weight: float = setting(
        default=0.1, help="weight of the cross-entropy on the tokens of the answer", validator=_finite_not_negative
    )
    format_weight: float = setting(
        default=0.1,
        help="weight of the extra cross-entropy on structural tokens (JSON, code fences)",
        validator=_finite_not_negative,
    )
    chunk_tokens: int = setting(
        default=256,
        help="token positions whose logits exist at a time; fewer: less memory, more: fewer passes over the head",
        validator=_positive_finite,
    )
