"""Options of the losses: the manifest's ``[loss]`` table. Importing this loads no torch."""

import math
from typing import Any

import attrs

from bitnet_core.intermediate_config import IntermediateConfig, finite_not_negative
from bitnet_core.settings import setting


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
