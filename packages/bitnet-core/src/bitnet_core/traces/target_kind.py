"""What the traces keep of each distribution: the shards' ``target`` (docs/targets.md). Imports nothing heavy."""

from collections.abc import Mapping
from typing import Any

from bitnet_core.errors import CoreError

TOPK: Mapping[str, Any] = {"kind": "topk"}
"""K candidates and the mass of the rest; what shards without a ``target`` hold."""
EXTRA_COLUMNS: Mapping[str, tuple[str, ...]] = {"topk": (), "tempered": ("log_z",), "sampled": ("log_z", "entropy")}
"""By kind: columns that raw shards and KD shards have beside those of all kinds."""
_SETTINGS = {"topk": (), "tempered": ("tau",), "sampled": ("draws", "draw_temperature")}
ALL_EXTRA = EXTRA_COLUMNS["sampled"]


def target_of(metadata: Mapping[str, Any], file: object) -> Mapping[str, Any]:
    """The ``target`` of a shard's metadata. Raises CoreError for a kind that is not known here."""
    target = metadata.get("target") or TOPK
    kind = target.get("kind") if isinstance(target, Mapping) else target
    if not isinstance(kind, str) or kind not in EXTRA_COLUMNS:
        raise CoreError(
            f"{file}: its target is of kind {kind!r}, and this bitnet-core knows {', '.join(EXTRA_COLUMNS)}; "
            "install the bitnet-core that fits the one that wrote it"
        )
    unset = [name for name in _SETTINGS[kind] if not isinstance(target.get(name), int | float)]
    if unset:
        raise CoreError(
            f"{file}: its target of kind {kind} doesn't say {' and '.join(unset)}; it was not written by this project: "
            "write it again as docs/raw-shard.md has it"
        )
    return dict(target)


def extra_columns(target: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns that come with the target's kind."""
    return EXTRA_COLUMNS[target["kind"]]


def is_sampled(target: Mapping[str, Any]) -> bool:
    """Whether candidates are draws: weights of an estimate, not probabilities."""
    return bool(target["kind"] == "sampled")
