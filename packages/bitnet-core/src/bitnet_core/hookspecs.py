"""The plugin seam of bitnet-core: how a package brings a loss, an exporter or a benchmark.

In your package, point the entry-point group ``bitnet`` at a module and write there::

    from bitnet_core.hookspecs import hookimpl

    @hookimpl
    def bitnet_losses():
        return [LossPlugin(name="mine", options=MyOptions, load=load_mine)]

The manifest then says ``[loss] kind = "mine"``. Listing plugins calls this hook: import torch inside ``load``.
An exporter comes through ``bitnet_exporters`` in the same way: ``[export] kinds = ["mine"]``; a benchmark through
``bitnet_benchmarks``: ``[evaluate] benchmarks = ["heldout", "mine"]`` (docs/benchmarks.md).
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pluggy

from bitnet_core.errors import CoreError
from bitnet_core.traces.target_kinds import topk_misfit

if TYPE_CHECKING:
    from bitnet_core.benchmarks.contract import Benchmark

API_VERSION = 1

hookspec = pluggy.HookspecMarker("bitnet")
hookimpl = pluggy.HookimplMarker("bitnet")


@attrs.frozen
class LossPlugin:
    """What a plugin says of a loss, light enough to list."""

    name: str
    """The manifest's ``loss.kind``."""
    options: type
    """A frozen attrs class; the manifest's ``[loss]`` table without ``kind`` becomes one. With a field ``intermediate:
    IntermediateConfig | None`` the training adds terms on the inner layers (docs/losses.md)."""
    load: Callable[[Any], Callable[..., Any]]
    """Options in, ``loss(hidden_BTD, head_weight_VD, batch) -> (scalar, metrics)`` out. See `bitnet_core.losses`."""
    misfit: Callable[[Any, Mapping[str, Any]], CoreError | None] = topk_misfit
    """Options and the traces' ``target`` (docs/targets.md) in, why the loss can't read it, and the fix, out; None: it
    can. The default is that of a loss of ``topk_ids``, ``topk_logprobs`` and ``other_logprob``."""
    summary: str = ""
    requires: tuple[str, ...] = ()
    install: str = ""
    api_version: int = 1


@attrs.frozen(kw_only=True)
class Exporter:
    """An exporter with its options, ready to write."""

    targets: tuple[str, ...]
    """The files and folders that it makes, so that nothing is overwritten by surprise."""
    write: Callable[[Any, Path], Mapping[str, Any]]
    """``write(student, folder)`` makes the targets in an empty folder; gives figures about them (plain JSON values).
    `student` is a `bitnet_core.export.load_student.Student`."""
    publish: Callable[[Path], str] | None = None
    """``publish(folder)`` sends them off once they have their names; says where they are."""


@attrs.frozen
class ExporterPlugin:
    """What a plugin says of an exporter, light enough to list."""

    name: str
    """What the manifest's ``export.kinds`` and ``bitnet export --to`` call it."""
    options: type
    """A frozen attrs class; the manifest's ``[export.NAME]`` table becomes one."""
    load: Callable[[Any], Exporter]
    """Options in, `Exporter` out."""
    summary: str = ""
    requires: tuple[str, ...] = ()
    install: str = ""
    api_version: int = 1


def _no_problem(_: Any) -> Iterable[str]:
    return ()


@attrs.frozen
class BenchmarkPlugin:
    """What a plugin says of a benchmark, light enough to list."""

    name: str
    """What the manifest's ``evaluate.benchmarks`` calls it."""
    options: type
    """A frozen attrs class; the manifest's ``[evaluate.NAME]`` table becomes one."""
    load: Callable[[Any], "Benchmark"]
    """Options in, ``benchmark(subject) -> Result`` out: see `bitnet_core.benchmarks.contract`. Called when the
    evaluation begins."""
    scores: tuple[str, ...] = ()
    """The names of its scores, where they are known beforehand: ``evaluate.qei_quality = "NAME.SCORE"`` is checked."""
    check: Callable[[Any], Iterable[str]] = _no_problem
    """Options in, what is wrong with them out (a file that isn't there), before anything runs. Quick, without torch."""
    asks: Callable[[Any], tuple[int, int]] | None = None
    """Options in, (answers, tokens of each at most) that are asked of the teacher: for the estimate of a paid one."""
    summary: str = ""
    requires: tuple[str, ...] = ()
    install: str = ""
    api_version: int = 1


@hookspec
def bitnet_losses() -> Iterable[LossPlugin]:
    """Return the losses that this package brings, as frozen records; import nothing heavy."""
    raise AssertionError("a specification is never called")


@hookspec
def bitnet_exporters() -> Iterable[ExporterPlugin]:
    """Return the exporters that this package brings, as frozen records; import nothing heavy."""
    raise AssertionError("a specification is never called")


@hookspec
def bitnet_benchmarks() -> Iterable[BenchmarkPlugin]:
    """Return the benchmarks that this package brings, as frozen records; import nothing heavy."""
    raise AssertionError("a specification is never called")
