"""From a place on disk to a runtime: a GGUF file opens in llama.cpp, a model's folder in torch."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, overload

from bitnet_core.errors import CoreError
from bitnet_core.runtime.contract import HeadKind, Runtime, ScoringRuntime
from bitnet_core.runtime.kinds import RUNTIMES
from bitnet_core.runtime.names import RUNTIME_NAMES, RuntimeName


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

    `bits` quantises the activations to 8 or 4 bits (16: not at all); None: as the model says. `kind` says what runs
    it; None: llama.cpp a GGUF, torch a folder. ``packed`` takes this project's ternary students, with a language-model
    head as `head` says.
    Raises CoreError: nothing there, damaged, its software not installed, or what it can't run with.
    """
    place = Path(place)
    check_place(place)
    chosen = kind or ("llamacpp" if place.is_file() else "torch")
    if chosen not in RUNTIMES:
        raise CoreError(f"kind = {kind!r}: no such runtime; take one of {', '.join(RUNTIME_NAMES)}")
    if place.is_file() and chosen != "llamacpp":
        raise CoreError(
            f"{place}: llama.cpp runs this file; for the runtime {chosen} name the checkpoint, or another export"
        )
    if chosen == "llamacpp" and not place.is_file():
        raise CoreError(f"{place}: llama.cpp runs .gguf files; export this one with --to gguf, or take another runtime")
    if chosen == "llamacpp" and bits is not None:
        raise CoreError(
            f"{place}: llama.cpp has its own activation bits, which can't be chosen; leave --bits out, or name "
            "the checkpoint"
        )
    with RUNTIMES[chosen].open(place, bits, head=head) as runtime:
        yield runtime


def check_place(place: Path) -> None:
    """Raises CoreError where `place` is nothing that could be loaded. Quick, and needs no torch."""
    if place.is_file():
        if place.suffix != ".gguf":
            raise CoreError(f"{place}: a file, and no .gguf; name a run, a checkpoint's folder, or an export")
        return
    if not place.is_dir():
        raise CoreError(f"{place}: nothing there; name a run folder, a checkpoint, or an export (a folder or a .gguf)")
    if (place / "config.json").is_file():
        return
    inside = [each.name for each in sorted(place.iterdir()) if _is_model(each)]
    if inside:
        raise CoreError(f"{place}: several models may lie here; name one of them: {', '.join(inside)}")
    raise CoreError(f"{place}: no model here (no config.json); name a run folder, a checkpoint, or an export")


def _is_model(place: Path) -> bool:
    return place.suffix == ".gguf" or (place / "config.json").is_file()


def model_type(folder: Path) -> str:
    """``model_type`` of the folder's config.json. Raises CoreError where it can't be read."""
    file = folder / "config.json"
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CoreError(f"{file}: can't be read ({error!r}); the model is damaged: name another one") from error
