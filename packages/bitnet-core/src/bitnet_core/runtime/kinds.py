"""The runtimes: how each makes of a checkpoint what it opens, opens that, and what it needs installed.

Another runtime is one more record here, and its name in `bitnet_core.runtime.names`. Importing this loads no torch.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import attrs

from bitnet_core.lazy import lazily
from bitnet_core.runtime.contract import HeadKind, Runtime
from bitnet_core.runtime.names import RuntimeName


@attrs.frozen(kw_only=True)
class RuntimeKind:
    """A way to run a student that was trained here."""

    name: RuntimeName
    prepare: Callable[[Path, Path | None, Path], Path]
    """``prepare(checkpoint, exports, work)``: the place that `open` opens. `exports` is the run's folder of exports,
    where there may be one already; else one is written into `work`, an empty folder. Raises CoreError for a student
    that has no such form."""
    open: Callable[..., AbstractContextManager[Runtime]]
    """``open(place, bits, precision="auto", head="int8")``: `bits` of the activations (None: as the model says),
    autocast's `precision`, and how the `head` is kept; a runtime with its own leaves them alone."""
    requires: tuple[str, ...] = ()
    install: str = ""


def _the_checkpoint(checkpoint: Path, exports: Path | None, work: Path) -> Path:
    return checkpoint


def _open_torch(
    place: Path, bits: int | None, precision: str = "auto", head: HeadKind = "int8"
) -> AbstractContextManager[Runtime]:
    from bitnet_core.runtime.torch_runtime import open_torch

    return open_torch(place, bits, precision)


def _open_llama_cpp(
    place: Path, bits: int | None, precision: str = "auto", head: HeadKind = "int8"
) -> AbstractContextManager[Runtime]:
    from bitnet_core.runtime.llamacpp_runtime import open_llama_cpp

    return open_llama_cpp(place)


def _open_packed(
    place: Path, bits: int | None, precision: str = "auto", head: HeadKind = "int8"
) -> AbstractContextManager[Runtime]:
    from bitnet_core.runtime.packed_runtime import open_packed

    return open_packed(place, bits, head=head)


RUNTIMES: dict[str, RuntimeKind] = {
    kind.name: kind
    for kind in (
        RuntimeKind(name="torch", prepare=_the_checkpoint, open=_open_torch),
        RuntimeKind(
            name="llamacpp",
            prepare=lazily("bitnet_core.export.gguf.exported:gguf_of"),
            open=_open_llama_cpp,
            requires=("xllamacpp", "gguf"),
            install="pip install 'bitnet-core[llamacpp]'",
        ),
        RuntimeKind(name="packed", prepare=_the_checkpoint, open=_open_packed),
    )
}
