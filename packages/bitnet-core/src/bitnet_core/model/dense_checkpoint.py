"""A full-precision checkpoint as transformers reads it, whole and float32: what a student starts from."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel

from bitnet_core.errors import CoreError, own_code_refused
from bitnet_core.model.progress_bars import no_progress_bars

READ_ERRORS = (ValueError, OSError, RuntimeError, SafetensorError)
"""What reading weights raises where they can't be read."""


@no_progress_bars()
def load_dense(folder: Path) -> PreTrainedModel:
    """The model in `folder`. Raises CoreError where weights can't be read, or are missing."""
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=False,
        )
    except READ_ERRORS as error:
        raise unreadable(folder, error) from error
    model: PreTrainedModel = loaded[0]
    # transformers would start them from chance, with a warning only.
    if missing := sorted(loaded[1]["missing_keys"]):
        raise CoreError(
            f"student.init_from: the weights in {folder} can't be used: {len(missing)} tensors that config.json "
            f"calls for are missing, {missing[0]} among them",
            "copy or download the folder again",
        )
    return model


def unreadable(folder: Path, error: BaseException) -> CoreError:
    """What to raise where reading the weights in `folder` raised `error`."""
    return own_code_refused(f"student.init_from: {folder}", error) or CoreError(
        f"student.init_from: the weights in {folder} can't be read: {error}",
        "copy or download the folder again: the weights must be safetensors, complete, and match config.json",
    )
