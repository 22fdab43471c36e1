"""Writes weights as transformers reads them: safetensors, in several files where they are big."""

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor


def write_weights(folder: Path, state: Mapping[str, Tensor], *, tied_head: bool, halve: bool) -> None:
    """``model.safetensors``, or numbered ones and their index. A tied head is stored once.

    `halve`: matrices and scales go in as float16, which holds the snapped values; a loader that casts to the config's
    float32 gets the same numbers back. Norm gains and biases stay float32, and so do embedding and head where they are
    not in 8 bits.
    """
    from huggingface_hub import save_torch_state_dict

    tensors = {
        name: (tensor.half() if halve and _fits_float16(name, tensor) else tensor).contiguous()
        for name, tensor in state.items()
        if not (tied_head and name == "lm_head.weight")
    }
    save_torch_state_dict(tensors, folder, max_shard_size="4GB")
    open_to_readers = 0o666 & ~_umask()
    for file in folder.glob("*.safetensors"):
        file.chmod(open_to_readers)  # safetensors makes them for their owner alone


def _fits_float16(name: str, tensor: Tensor) -> bool:
    if name in ("model.embed_tokens.weight", "lm_head.weight"):
        return False
    return tensor.is_floating_point() and (tensor.dim() > 1 or name.endswith("row_scale"))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
