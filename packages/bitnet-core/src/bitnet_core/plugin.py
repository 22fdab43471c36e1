"""What bitnet-core brings to the plugin system. Importing this loads no torch."""

from collections.abc import Iterable

from bitnet_core.hookspecs import LossPlugin, hookimpl
from bitnet_core.loss_config import TopKOtherConfig


def _load_topk_other(options: TopKOtherConfig):  # type: ignore[no-untyped-def]
    from bitnet_core.chunked_loss import load_topk_other

    return load_topk_other(options)


@hookimpl
def bitnet_losses() -> Iterable[LossPlugin]:
    return [
        LossPlugin(
            name="topk_other",
            options=TopKOtherConfig,
            load=_load_topk_other,
            summary="KL over the teacher's top-K and the rest, both tempered, + CE + format",
        )
    ]
