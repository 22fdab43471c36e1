"""Where the local teacher computes, and in which number format."""

from collections.abc import Mapping
from typing import Any

import torch

from bitnet_providers.contract import ProviderError
from bitnet_providers.local.device_check import unusable

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
