"""Whether a manifest's ``teacher.device`` can be there, found out without loading torch where that is possible."""

import ctypes
import re
import sys
from pathlib import Path

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
        from bitnet_providers.local.device import pick_device
    except ImportError:  # told with the install line by the plugin's `requires`
        return []
    try:
        pick_device(wanted)
    except ProviderError as error:
        return [str(error).removeprefix("teacher.")]
    return []
