"""A C++ file compiled for this machine's instruction set, once, and loaded.

The compiler is called directly: torch's extension loader needs ninja as well, its lock outlives a killed process, and
torch's headers take half a minute to compile, while our sources need none of them and take seconds. Each process
compiles under a name of its own and renames, so those that start together don't clash.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from bitnet_core.errors import CoreError
from bitnet_core.files import sha256_of

INSTRUCTION_SETS: dict[str, tuple[str, ...]] = {
    "avx512_vnni": (
        "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mavx2", "-mfma",
        "-mprefer-vector-width=512",
    ),
    "avx2": ("-mavx2", "-mfma"),
    "portable": (),
}  # fmt: skip
"""The compiler's options for each path of a source, the fastest first."""
_NEEDS = {
    "avx512_vnni": ("avx512_f", "avx512_bw", "avx512_vl", "avx512_dq", "avx512_vnni", "avx2", "fma3"),
    "avx2": ("avx2", "fma3"),
    "portable": (),
}
EXPONENTIAL = Path(__file__).with_name("exponential.h")
"""What several of our sources include."""
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-w")
INSTALL = "install one (Debian, Ubuntu, Colab: apt install g++; macOS: xcode-select --install) or name it in CXX"


class NoCompilerError(CoreError):
    """The library can't be made here; what else does its work is the caller's choice."""


def instruction_sets() -> list[str]:
    """Those that this machine can run, the fastest first."""
    found = torch.cpu.get_capabilities()
    return [name for name, needs in _NEEDS.items() if all(found.get(need) for need in needs)]


def chosen_instruction_set(named: str | None = None) -> str:
    """The fastest here, or the one that is named by the argument or else by the environment variable ``BITNET_CPU``.

    Raises CoreError for one that this machine hasn't got.
    """
    able = instruction_sets()
    chosen = named or os.environ.get("BITNET_CPU") or able[0]
    if chosen not in able:
        raise CoreError(
            f'instruction set "{chosen}": this machine runs {", ".join(able)}', "set BITNET_CPU to one of them"
        )
    return chosen


@functools.cache
def loaded(file: Path) -> ctypes.CDLL:
    """The compiled library. Raises NoCompilerError where it can't be loaded."""
    try:
        return ctypes.CDLL(str(file))
    except OSError as error:
        raise NoCompilerError(
            f"{file}: the compiled library can't be loaded ({error})",
            "delete it, and it is compiled anew, or set the environment variable BITNET_CACHE to another folder",
        ) from error


def compiled(source: Path, instruction_set: str, headers: tuple[Path, ...] = ()) -> Path:
    """The shared library of `source`, from the cache or compiled into it. Raises NoCompilerError.

    headers: ours that it includes.
    """
    options = (*FLAGS, *INSTRUCTION_SETS[instruction_set])
    read = b"".join(file.read_bytes() for file in (source, *headers))
    # A home folder may be shared by machines of several kinds.
    key = hashlib.sha256(read + " ".join((*options, sys.platform, platform.machine())).encode()).hexdigest()[:16]
    file = cache_folder() / "runtime" / f"{source.stem}-{instruction_set}-{key}.so"
    if not _is_whole(file):
        _compile(_compiler(), options, source, file)
    return file


def _is_whole(library: Path) -> bool:
    """Whether it is as it was compiled: one with flipped bits may load, and end the process later."""
    try:
        return sha256_of(library) == _digest_of(library).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return False


def _digest_of(library: Path) -> Path:
    return library.with_suffix(".sha256")


def _compile(compiler: list[str], options: tuple[str, ...], source: Path, file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=".compiling-") as folder:
            partial = Path(folder) / file.name
            # Without OpenMP (Apple's clang) it runs on one thread. torch's own OpenMP is loaded already and is used.
            for openmp in (["-fopenmp"], []):
                command = [*compiler, *options, *openmp, str(source), "-o", str(partial)]
                done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
                if done.returncode == 0:
                    with partial.open("rb") as written:
                        os.fsync(written.fileno())  # half a library that is loaded kills the process
                    digest = _digest_of(partial)
                    digest.write_text(sha256_of(partial) + "\n", encoding="ascii")
                    partial.replace(file)
                    digest.replace(_digest_of(file))
                    return
    except OSError as error:
        raise NoCompilerError(
            f"{file.parent}: {source.name} can't be compiled there ({error})",
            "set the environment variable BITNET_CACHE to a folder that can be written",
        ) from error
    told = (done.stderr.strip().splitlines() or ["it says nothing"])[0]
    raise NoCompilerError(f"{compiler[0]} can't compile {source.name} ({told})", INSTALL)


def _compiler() -> list[str]:
    try:
        named = shlex.split(told := os.environ.get("CXX", ""))
    except ValueError as error:
        raise NoCompilerError(
            f"the environment variable CXX is no command ({error}): {told}",
            "set it to a compiler's command, or unset it",
        ) from error
    for command in [named] if named else [["c++"], ["g++"], ["clang++"]]:
        if shutil.which(command[0]):
            return command
    raise NoCompilerError(f"no C++ compiler ({named[0] if named else 'c++, g++, clang++'})", INSTALL)


def cache_folder() -> Path:
    """``$BITNET_CACHE``, else ``bitnet`` in the user's cache folder (``$XDG_CACHE_HOME``, else ``~/.cache``)."""
    own, shared = os.environ.get("BITNET_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(own).expanduser() if own else (Path(shared) if shared else Path.home() / ".cache") / "bitnet"
    except RuntimeError:
        raise NoCompilerError(
            "there is no home folder to keep compiled libraries in (HOME is not set)",
            "set the environment variable BITNET_CACHE to a folder that can be written",
        ) from None


def pointer(tensor: torch.Tensor | None) -> Any:
    """Its address for the library; None for null. The tensor must outlive what is done with it."""
    if tensor is None:
        return None
    assert tensor.is_contiguous(), tensor.shape
    return tensor.data_ptr()
