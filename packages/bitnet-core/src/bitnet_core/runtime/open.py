"""From a place on disk to a runtime: a GGUF file opens in llama.cpp, a model's folder in torch or packed.

`RUNTIMES` has a record for each: how it makes of a checkpoint what it opens, and opens that. Loads no torch.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Literal, overload

import attrs

from bitnet_core.config.evaluate import RUNTIME_NAMES, RuntimeName
from bitnet_core.errors import CoreError
from bitnet_core.lazy import lazily
from bitnet_core.runtime.contract import HeadKind, Runtime, ScoringRuntime


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
    from bitnet_core.runtime.llamacpp.llamacpp_runtime import open_llama_cpp

    return open_llama_cpp(place)


def _open_packed(
    place: Path, bits: int | None, precision: str = "auto", head: HeadKind = "int8"
) -> AbstractContextManager[Runtime]:
    from bitnet_core.runtime.packed.packed_runtime import open_packed

    return open_packed(place, bits, head=head)


RUNTIMES: dict[str, RuntimeKind] = {
    kind.name: kind
    for kind in (
        RuntimeKind(name="torch", prepare=_the_checkpoint, open=_open_torch),
        RuntimeKind(
            name="llamacpp",
            prepare=lazily("bitnet_core.export.gguf.find_gguf:gguf_of"),
            open=_open_llama_cpp,
            requires=("xllamacpp", "gguf"),
            install="pip install 'bitnet-core[llamacpp]'",
        ),
        RuntimeKind(name="packed", prepare=_the_checkpoint, open=_open_packed),
    )
}


@overload
@contextmanager
def open_runtime(
    place: str | Path,
    *,
    bits: int | None = None,
    kind: Literal["torch", "packed"],
    head: HeadKind = "int8",
) -> Iterator[ScoringRuntime]: ...


@overload
@contextmanager
def open_runtime(
    place: str | Path,
    *,
    bits: int | None = None,
    kind: RuntimeName | None = None,
    head: HeadKind = "int8",
) -> Iterator[Runtime]: ...


@contextmanager
def open_runtime(
    place: str | Path,
    *,
    bits: int | None = None,
    kind: RuntimeName | None = None,
    head: HeadKind = "int8",
) -> Iterator[Runtime]:
    """Load what lies at `place`: a checkpoint, an ``hf`` or ``packed`` export, any local Hugging Face folder, a GGUF.
    Of a run's folder that is its latest checkpoint, with ``llamacpp`` its GGUF export.

    `bits` quantises the activations to 8 or 4 bits (16: not at all); None: as the model says. `kind` says what runs
    it; None: llama.cpp a GGUF, torch a folder. ``packed`` takes this project's ternary students, with a language-model
    head as `head` says.
    Raises CoreError: nothing there, damaged, its software not installed, or what it can't run with.
    """
    place = _in_run(Path(place), kind)
    check_place(place)
    chosen = kind or ("llamacpp" if place.is_file() else "torch")
    if chosen not in RUNTIMES:
        raise CoreError(f"kind = {kind!r}: no such runtime", f"take one of {', '.join(RUNTIME_NAMES)}")
    if place.is_file() and chosen != "llamacpp":
        raise CoreError(
            f"{place}: llama.cpp runs this file", f"name the checkpoint, or another export, for the runtime {chosen}"
        )
    if chosen == "llamacpp" and not place.is_file():
        raise CoreError(
            f"{place}: llama.cpp runs .gguf files", "export this one with --to gguf, or take another runtime"
        )
    if chosen == "llamacpp" and bits is not None:
        raise CoreError(
            f"{place}: llama.cpp has its own activation bits, which can't be chosen",
            "leave --bits out, or name the checkpoint",
        )
    with RUNTIMES[chosen].open(place, bits, head=head) as runtime:
        yield runtime


def _in_run(place: Path, kind: str | None) -> Path:
    """What a run's folder stands for; any other place is itself. Raises CoreError where the run has no such thing."""
    if (place / "config.json").is_file() or not (place / "checkpoints").is_dir():
        return place
    if kind != "llamacpp":
        from bitnet_core.model.choose_checkpoint import latest_checkpoint

        return latest_checkpoint(place / "checkpoints")
    files = sorted((place / "exports").glob("*.gguf"))
    if len(files) != 1:
        names = ", ".join(file.name for file in files)
        raise CoreError(
            f"{place}: {f'several GGUF files ({names})' if files else 'no GGUF file'} in its exports",
            f"name one of them: {files[0]}" if files else f"write one with `bitnet export {place} --to gguf`",
        )
    return files[0]


def check_place(place: Path) -> None:
    """Raises CoreError where `place` is nothing that could be loaded. Quick, and needs no torch."""
    if place.is_file():
        if place.suffix != ".gguf":
            raise CoreError(f"{place}: a file, and no .gguf", "name a run, a checkpoint's folder, or an export")
        return
    if not place.is_dir():
        raise CoreError(
            f"{place}: nothing there", "name a run folder, a checkpoint, or an export (a folder or a .gguf)"
        )
    if (place / "config.json").is_file():
        return
    inside = [each.name for each in sorted(place.iterdir()) if _is_model(each)]
    if inside:
        raise CoreError(f"{place}: several models may lie here", f"name one of them: {', '.join(inside)}")
    raise CoreError(f"{place}: no model here (no config.json)", "name a run folder, a checkpoint, or an export")


def _is_model(place: Path) -> bool:
    return place.suffix == ".gguf" or (place / "config.json").is_file()
