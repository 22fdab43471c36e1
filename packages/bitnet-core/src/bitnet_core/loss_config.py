"""Options of the losses: the manifest's ``[loss]`` table. Importing this loads no torch."""

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


def _ce_weight() -> Any:
    return setting(
        default=0.1, help="weight of the cross-entropy on the tokens of the answer", validator=_finite_not_negative
    )


def _format_weight() -> Any:
    return setting(
        default=0.1,
        help="weight of the extra cross-entropy on structural tokens (JSON, code fences)",
        validator=_finite_not_negative,
    )


def _chunk_tokens() -> Any:
    return setting(
        default=256,
        help="token positions whose logits exist at a time; fewer: less memory, more: fewer passes over the head",
        validator=_positive_finite,
    )


@attrs.frozen(kw_only=True)
class TopKOtherConfig:
    """KL over the teacher's top-K and the rest, both tempered, + CE on the answer + CE on structural tokens."""

    tau: float = setting(
        default=1.0,
        help="temperature of both bucketed distributions; the KD term is multiplied by its square",
        validator=_positive_finite,
    )
    ce_weight: float = _ce_weight()
    format_weight: float = _format_weight()
    chunk_tokens: int = _chunk_tokens()


@attrs.frozen(kw_only=True)
class TemperedConfig:
    """KL over the top-K and the rest of both whole distributions, tempered (collect.targets = "tempered"), + CE."""

    tau: float = setting(
        default=2.0,
        help="temperature of both whole distributions: collect.log_z_tau; the KD term is multiplied by its square",
        validator=_positive_finite,
    )
    ce_weight: float = _ce_weight()
    format_weight: float = _format_weight()
    chunk_tokens: int = _chunk_tokens()


@attrs.frozen(kw_only=True)
class SampledConfig:
    """Cross-entropy of the teacher's draws (collect.targets = "sampled"), + CE on the answer and structural tokens."""

    ce_weight: float = _ce_weight()
    format_weight: float = _format_weight()
    chunk_tokens: int = _chunk_tokens()
