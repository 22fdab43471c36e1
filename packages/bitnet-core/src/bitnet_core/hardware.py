"""What this machine is good at."""

import ctypes
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import nn

from bitnet_core.errors import CoreError

Model = TypeVar("Model", bound=nn.Module)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""


def best_device() -> torch.device:
    """CUDA, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def fast_bf16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are faster than in float32 here."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        # Plain AVX-512 takes bfloat16 too, but only by converting it.
        found = torch.cpu.get_capabilities()
        return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    return False


def half_dtype(device: torch.device) -> torch.dtype:
    """The 16 bits that products are fast in: bfloat16, but float16 on a GPU that only emulates that (a T4, sm_75)."""
    return torch.float16 if device.type == "cuda" and not fast_bf16(device) else torch.bfloat16


def move(model: Model, device: torch.device) -> Model:
    """`model` on `device` (transformers' own `.to` hides its type)."""
    nn.Module.to(model, device)
    return model


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The autocast context for `precision` (fp32, bf16, fp16, auto)."""
    dtype = autocast_dtype(precision, device)
    return nullcontext() if dtype is torch.float32 else torch.autocast(device.type, dtype=dtype)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of matrix products; auto: the 16 bits that a GPU is fast in (`half_dtype`), bf16 or fp32 on a CPU.

    Raises CoreError for fp16 on a CPU: slower than fp32, less exact than bf16.
    """
    if precision == "fp16" and device.type == "cpu":
        raise CoreError(
            'train.precision = "fp16" on a CPU is slow and inexact',
            "use bf16 or fp32 on a CPU: --set 'train.precision=\"auto\"' chooses; or a machine with a GPU",
        )
    if precision == "auto":
        return half_dtype(device) if device.type == "cuda" or fast_bf16(device) else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def keep_freed_memory() -> None:
    """Have this process keep memory that is freed, for what is allocated next (glibc; elsewhere nothing happens).

    Otherwise a step's gradients are given back to the system with the step, and the next step's come as new pages that
    are filled with zeros first.
    """
    _set_malloc(trim=2**31 - 1, mmap=2**26)  # larger blocks are the system's, as before: they are few


def give_freed_memory_back() -> None:
    """The opposite: where layers are gathered and let go of, glibc would keep more than is in use (twice as much)."""
    _set_malloc(trim=2**18, mmap=2**18)


def _set_malloc(*, trim: int, mmap: int) -> None:
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if set_option is not None:
        set_option(_M_TRIM_THRESHOLD, trim)
        set_option(_M_MMAP_THRESHOLD, mmap)


def peak_memory_bytes(device: torch.device) -> int:
    """Peak bytes of this process: the allocator's on CUDA, the resident set's elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return _peak_working_set()
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _peak_working_set() -> int:
    """Windows has no getrusage: PROCESS_MEMORY_COUNTERS, whose third field is PeakWorkingSetSize."""
    from ctypes import wintypes

    class Counters(ctypes.Structure):
        _fields_ = [
            ("cb", wintypes.DWORD),
            ("PageFaultCount", wintypes.DWORD),
            ("PeakWorkingSetSize", ctypes.c_size_t),
            ("others", ctypes.c_size_t * 7),
        ]

    counters = Counters(cb=ctypes.sizeof(Counters))
    kernel = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined]
    process = wintypes.HANDLE(-1)  # what GetCurrentProcess gives
    if not kernel.K32GetProcessMemoryInfo(process, ctypes.byref(counters), counters.cb):
        raise OSError("GetProcessMemoryInfo failed")
    return int(counters.PeakWorkingSetSize)
