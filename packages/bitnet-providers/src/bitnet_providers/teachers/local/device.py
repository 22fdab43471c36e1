"""Where the local teacher computes, in which number format, and whether that can be had, told without loading torch."""

import ctypes
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bitnet_providers.contract import ProviderError


def device_problems(wanted: str) -> list[str]:
    """What is wrong with the device `wanted`, with the fix; [] where nothing can be said before it is opened."""
    if wanted in ("auto", "cpu"):
        return []
    reason: str | None = None
    if cuda := re.fullmatch(r"cuda(?::(\d+))?", wanted):
        reason = _no_cuda(int(cuda[1] or 0))
    elif wanted == "mps":
        reason = None if sys.platform == "darwin" else "MPS is on Apple computers only"
    else:
        return _ask_torch(wanted)
    return [] if reason is None else [unusable(wanted, reason)]


def unusable(wanted: str, reason: str) -> str:
    """The message, without the manifest's section."""
    return f'device: "{wanted}" can\'t be used here ({reason}): write "auto", "cpu" or a device that exists'


def _no_cuda(index: int) -> str | None:
    """Why there can be no such GPU. The driver is not started: that would break CUDA in processes forked later."""
    if not sys.platform.startswith("linux"):
        return "Apple computers have no CUDA" if sys.platform == "darwin" else None
    if Path("/dev/kfd").exists():  # ROCm, which torch calls cuda too
        return None
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "there is no NVIDIA driver"
    gpus = len([path for path in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)])
    # None are listed on WSL and Jetson, where there is one all the same.
    return f"there are {gpus} GPUs, counted from 0" if 0 < gpus <= index else None


def _ask_torch(wanted: str) -> list[str]:
    try:
        pass
    except ImportError:  # told with the install line by the plugin's `requires`
        return []
    try:
        pick_device(wanted)
    except ProviderError as error:
        return [str(error).removeprefix("teacher.")]
    return []


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(wanted: str) -> torch.device:
    """``"auto"``: CUDA, else MPS, else CPU. Raises ProviderError for a device that isn't there."""
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ProviderError("teacher." + unusable(wanted, reason)) from None
    return device


def pick_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """``"auto"``: bfloat16 where the hardware multiplies it fast, else float32."""
    if wanted != "auto":
        return DTYPES[wanted]
    return torch.bfloat16 if _fast_bf16(device) else torch.float32


def _fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        # Plain AVX-512 takes bfloat16 too, but only by converting it: not faster, less exact.
        found: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older torch does not tell
        return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    return False


def dtype_name(dtype: torch.dtype) -> str:
    return next((name for name, each in DTYPES.items() if each is dtype), str(dtype))
