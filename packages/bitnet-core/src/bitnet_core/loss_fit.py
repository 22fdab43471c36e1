"""Which loss fits which targets; told by `bitnet plan` and before training. Importing this loads no torch."""

from collections.abc import Mapping
from typing import Any

from bitnet_core.loss_config import TemperedConfig
from bitnet_core.traces.target_kind import KINDS, is_sampled, is_tempered, is_topk


def topk_misfit(_options: Any, target: Mapping[str, Any]) -> str | None:
    """A loss of top-K candidates and the rest: they are in tempered targets too."""
    if is_topk(target) or is_tempered(target):
        return None
    return f"it reads top-K candidates, and {_held(target)}: {_fix(target)}"


def tempered_misfit(options: TemperedConfig, target: Mapping[str, Any]) -> str | None:
    if not is_tempered(target):
        return f"it reads log Z beside the candidates, and {_held(target)}: {_fix(target)}"
    if options.tau != target["tau"]:
        return (
            f"loss.tau is {options.tau}, and the traces hold log Z for tau {target['tau']}: "
            f"set loss.tau = {target['tau']}, or collect.log_z_tau = {options.tau} and collect again"
        )
    return None


def sampled_misfit(_options: Any, target: Mapping[str, Any]) -> str | None:
    return None if is_sampled(target) else f"it reads draws, and {_held(target)}: {_fix(target)}"


def _held(target: Mapping[str, Any]) -> str:
    return f'the traces\' targets are of kind "{target["kind"]}"'


def _fix(target: Mapping[str, Any]) -> str:
    return f'set loss.kind = "{KINDS[target["kind"]].loss}", or another collect.targets and collect again'
