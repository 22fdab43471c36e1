"""Options of the losses: the manifest's ``[loss]`` table. Importing this loads no torch."""

import math
from typing import Any

import attrs

from bitnet_core.intermediate_config import IntermediateConfig
from bitnet_core.settings import setting


def _positive_finite(_instance: Any, attribute: "attrs.Attribute[Any]", value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{attribute.name} must be a finite number above 0, not {value}")


def _finite_not_negative(_instance: Any, attribute: "attrs.Attribute[Any]", value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{attribute.name} must be a finite number, 0 or above, not {value}")


def _open_fraction(_instance: Any, attribute: "attrs.Attribute[Any]", value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{attribute.name} must be between 0 and 1, not {value}")


def _tau() -> Any:
    return setting(
        default=1.0,
        help="temperature of both bucketed distributions; the KD term is multiplied by its square",
        validator=_positive_finite,
    )


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


_INTERMEDIATE = "terms on the inner layers, for a teacher on this machine (docs/losses.md)"


@attrs.frozen(kw_only=True)
class TopKOtherConfig:
    """KL over the teacher's top-K and the rest, both tempered, + CE on the answer + CE on structural tokens."""

    tau: float = _tau()
    ce_weight: float = _ce_weight()
    format_weight: float = _format_weight()
    chunk_tokens: int = _chunk_tokens()
    intermediate: IntermediateConfig | None = setting(default=None, help=_INTERMEDIATE)


@attrs.frozen(kw_only=True)
class ReverseKLConfig:
    """As topk_other, with the KL the other way round: the student is kept from what the teacher doesn't say."""

    tau: float = _tau()
    ce_weight: float = _ce_weight()
    format_weight: float = _format_weight()
    chunk_tokens: int = _chunk_tokens()
    intermediate: IntermediateConfig | None = setting(default=None, help=_INTERMEDIATE)


@attrs.frozen(kw_only=True)
class JensenShannonConfig:
    """As topk_other, with the generalised Jensen-Shannon divergence, which is bounded."""

    beta: float = setting(
        default=0.5,
        help="the teacher's share in the mixture that both sides are compared with: near 0 forward KL, near 1 reverse",
        validator=_open_fraction,
    )
    tau: float = _tau()
    ce_weight: float = _ce_weight()
    format_weight: float = _format_weight()
    chunk_tokens: int = _chunk_tokens()
    intermediate: IntermediateConfig | None = setting(default=None, help=_INTERMEDIATE)


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
    intermediate: IntermediateConfig | None = setting(default=None, help=_INTERMEDIATE)


@attrs.frozen(kw_only=True)
class SampledConfig:
    """Cross-entropy of the teacher's draws (collect.targets = "sampled"), + CE on the answer and structural tokens."""

    ce_weight: float = _ce_weight()
    format_weight: float = _format_weight()
    chunk_tokens: int = _chunk_tokens()
    intermediate: IntermediateConfig | None = setting(default=None, help=_INTERMEDIATE)
