"""Where the local teacher computes, in which number format, and whether that can be had, told without loading torch."""

import ctypes
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnet_providers.contract import ProviderError

if TYPE_CHECKING:
    import torch

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""The manifest's names → torch's."""


def device_problems(wanted: str) -> list[ProviderError]:
    """What is wrong with the device `wanted`, with the fix; [] where nothing can be said before it is opened."""
    if wanted in ("auto", "cpu"):
        return []
    reason: str | None = None
    if cuda := re.fullmatch(r"cuda(?::(\d+))?", wanted):
        reason = _no_cuda(int(cuda[1] or 0))
    elif wanted == "mps":
        reason = None if sys.platform == "darwin" else "MPS is on Apple computers only"
    else:
        reason = _torch_refuses(wanted)
    return [] if reason is None else [_unusable("device", wanted, reason)]


def one_or_many(device: str, devices: int) -> list[ProviderError]:
    """Several devices, where one is named."""
    if devices == 1 or device in ("auto", "cpu", "cuda"):
        return []
    return [ProviderError(f'devices: {devices}, and device = "{device}" names one', 'write device = "auto"')]


def _unusable(setting: str, wanted: str, reason: str) -> ProviderError:
    return ProviderError(
        f'{setting}: "{wanted}" can\'t be used here ({reason})', 'write "auto", "cpu" or a device that exists'
    )


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


def _torch_refuses(wanted: str) -> str | None:
    """Torch's reason, in a line; None: it takes the device, or is not installed (the plugin's `requires` says so)."""
    try:
        import torch
    except ImportError:
        return None
    try:
        torch.zeros(1, device=torch.device(wanted))
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    return None


def pick_device(wanted: str) -> "torch.device":
    """``"auto"``: CUDA, else MPS, else CPU. Raises ProviderError for a device that isn't there."""
    import torch

    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    reason = _torch_refuses(wanted)
    if reason is not None:
        raise _unusable("teacher.device", wanted, reason)
    return torch.device(wanted)


def pick_dtype(wanted: str, device: "torch.device") -> "torch.dtype":
    """``"auto"``: bfloat16 where the hardware multiplies it fast, else float32."""
    import torch

    if wanted != "auto":
        dtype: torch.dtype = getattr(torch, DTYPES[wanted])
        return dtype
    return torch.bfloat16 if _fast_bf16(device) else torch.float32


def _fast_bf16(device: "torch.device") -> bool:
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        # Plain AVX-512 takes bfloat16 too, but only by converting it: not faster, less exact.
        found: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older torch does not tell
        return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    return False


def dtype_name(dtype: "torch.dtype") -> str:
    name = str(dtype).removeprefix("torch.")
    return next((short for short, each in DTYPES.items() if each == name), str(dtype))
