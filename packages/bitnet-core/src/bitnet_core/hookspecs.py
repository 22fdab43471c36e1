"""The plugin seam of bitnet-core: how a package brings a loss (benchmarks and exporters join with their features).

In your package, point the entry-point group ``bitnet`` at a module and write there::

    from bitnet_core.hookspecs import hookimpl

    @hookimpl
    def bitnet_losses():
        return [LossPlugin(name="mine", options=MyOptions, load=load_mine)]

The manifest then says ``[loss] kind = "mine"``. Listing plugins calls this hook: import torch inside ``load``.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs
import pluggy

from bitnet_core.loss_fit import topk_misfit

API_VERSION = 1

hookspec = pluggy.HookspecMarker("bitnet")
hookimpl = pluggy.HookimplMarker("bitnet")


@attrs.frozen
class LossPlugin:
    """What a plugin says of a loss, light enough to list."""

    name: str
    """The manifest's ``loss.kind``."""
    options: type
    """A frozen attrs class; the manifest's ``[loss]`` table without ``kind`` becomes one."""
    load: Callable[[Any], Callable[..., Any]]
    """Options in, ``loss(hidden_BTD, head_weight_VD, batch) -> (scalar, metrics)`` out. See `bitnet_core.losses`."""
    misfit: Callable[[Any, Mapping[str, Any]], str | None] = topk_misfit
    """Options and the traces' ``target`` (docs/targets.md) in, why the loss can't read it, with the fix, out; None: it
    can. The default is that of a loss of ``topk_ids``, ``topk_logprobs`` and ``other_logprob``."""
    summary: str = ""
    requires: tuple[str, ...] = ()
    install: str = ""
    api_version: int = 1


@hookspec
def bitnet_losses() -> Iterable[LossPlugin]:
    """Return the losses that this package brings, as frozen records; import nothing heavy."""
    raise AssertionError("a specification is never called")
