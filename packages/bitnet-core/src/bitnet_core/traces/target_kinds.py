"""What the traces keep of each distribution: the shards' ``target`` (docs/targets.md). Imports nothing heavy."""

from collections.abc import Mapping
from typing import Any

import attrs

from bitnet_core.config.loss import TemperedConfig
from bitnet_core.errors import CoreError

TOPK: Mapping[str, Any] = {"kind": "topk"}
"""K candidates and the mass of the rest; what shards without a ``target`` hold."""


@attrs.frozen(kw_only=True)
class TargetKind:
    """What comes with a kind of target."""

    settings: tuple[str, ...] = ()
    """What its record says beside ``kind``: numbers."""
    columns: tuple[str, ...] = ()
    """Columns that raw shards and KD shards have beside those of all kinds."""
    loss: str
    """The loss that is made for it."""


KINDS: Mapping[str, TargetKind] = {
    "topk": TargetKind(loss="topk_other"),
    "tempered": TargetKind(settings=("tau",), columns=("log_z",), loss="tempered"),
    "sampled": TargetKind(settings=("draws", "draw_temperature"), columns=("log_z", "entropy"), loss="sampled"),
}

ALL_EXTRA = KINDS["sampled"].columns


def target_of(metadata: Mapping[str, Any], file: object) -> Mapping[str, Any]:
    """The ``target`` of a shard's metadata. Raises CoreError for a kind that is not known here."""
    target = metadata.get("target") or TOPK
    kind = target.get("kind") if isinstance(target, Mapping) else target
    if not isinstance(kind, str) or kind not in KINDS:
        raise CoreError(
            f"{file}: its target is of kind {kind!r}, and this bitnet-core knows {', '.join(KINDS)}",
            "install the bitnet-core that fits the one that wrote it",
        )
    unset = [name for name in KINDS[kind].settings if not isinstance(target.get(name), int | float)]
    if unset:
        raise CoreError(
            f"{file}: its target of kind {kind} doesn't say {' and '.join(unset)}, so it was not written by "
            "this project",
            "write it again as docs/raw-shard.md has it",
        )
    return dict(target)


def extra_columns(target: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns that come with the target's kind."""
    return KINDS[target["kind"]].columns


def is_topk(target: Mapping[str, Any]) -> bool:
    """Whether the candidates and the mass of the rest are all there is."""
    return bool(target["kind"] == TOPK["kind"])


def is_tempered(target: Mapping[str, Any]) -> bool:
    """Whether log Z at the target's tau comes with the candidates."""
    return bool(target["kind"] == "tempered")


def is_sampled(target: Mapping[str, Any]) -> bool:
    """Whether candidates are draws: weights of an estimate, not probabilities."""
    return bool(target["kind"] == "sampled")


def topk_misfit(_options: Any, target: Mapping[str, Any]) -> CoreError | None:
    """A loss of top-K candidates and the rest: they are in tempered targets too."""
    if is_topk(target) or is_tempered(target):
        return None
    return _misfit("top-K candidates", target)


def tempered_misfit(options: TemperedConfig, target: Mapping[str, Any]) -> CoreError | None:
    if not is_tempered(target):
        return _misfit("log Z beside the candidates", target)
    if options.tau != target["tau"]:
        return CoreError(
            f"loss.tau is {options.tau}, and the traces hold log Z for tau {target['tau']}",
            f"set loss.tau = {target['tau']}, or collect.log_z_tau = {options.tau} and collect again",
        )
    return None


def sampled_misfit(_options: Any, target: Mapping[str, Any]) -> CoreError | None:
    return None if is_sampled(target) else _misfit("draws", target)


def _misfit(read: str, target: Mapping[str, Any]) -> CoreError:
    return CoreError(
        f'it reads {read}, and the traces\' targets are of kind "{target["kind"]}"',
        f'set loss.kind = "{KINDS[target["kind"]].loss}", or another collect.targets and collect again',
    )
