"""A model and its tokenizer out of a folder, through transformers, tried out before anything is asked of it."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from bitnet_providers.contract import ProviderError
from bitnet_providers.teachers.local.convert_gguf import no_progress_bars
from bitnet_providers.teachers.local.device_and_dtype import dtype_name
from bitnet_providers.teachers.local.model_source import own_code_refused


def is_quantised(folder: Path) -> bool:
    """Whether the weights are stored in a way of their own, by config.json."""
    try:
        return bool(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("quantization_config"))
    except (OSError, ValueError, AttributeError):
        return False  # transformers says better what is wrong with it


def uncompiled(wanted: bool) -> AbstractContextManager[Any]:
    """Within it torch compiles nothing, where `wanted`: transformers' ternary layers are functions that it would
    compile for each shape anew, which takes longer than it saves, and needs a C++ compiler."""
    return torch.compiler.set_stance("force_eager") if wanted else nullcontext()


def load_model(folder: Path, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """(model, tokenizer) of a folder, on the device and tried out. Raises ProviderError."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with no_progress_bars(), uncompiled(is_quantised(folder)):
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(folder),
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
            model, loading = loaded
    except Exception as error:  # tokenizers, safetensors and the checks of a config have plain ones of their own
        raise own_code_refused(f"teacher.model: {folder}", error) or _not_loaded(folder, error) from error
    if missing := sorted(loading["missing_keys"]):
        some = ", ".join(missing[:3])
        raise ProviderError(
            f"teacher.model: {folder} lacks {len(missing)} of the weights ({some}): they would be drawn",
            "name a whole language model: no classifier, no encoder, no adapter",
        )
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ProviderError(
            f"teacher.model: {folder} has no fast tokenizer (tokenizer.json)",
            "save it again with AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
        )
    try:
        model = model.to(device).eval().requires_grad_(False)
        # In a thread that ends: with the OpenMP threads of one that stays, all later regions wait without spinning,
        # which makes the collection a fifth slower on two cores.
        with ThreadPoolExecutor(max_workers=1) as thread:
            thread.submit(_try_out, model, folder).result()
    except torch.OutOfMemoryError as error:
        raise ProviderError(
            f"teacher.model: {folder} does not fit on {device}", 'pick a smaller model, or set teacher.device = "cpu"'
        ) from error
    return model, tokenizer


def _not_loaded(folder: Path, error: Exception) -> ProviderError:
    reason = " ".join(str(error).split()).partition(" Model type should be one of ")[0][:300]
    fix = "check that the folder is whole (config.json, *.safetensors, tokenizer.json)"
    if "Unrecognized configuration class" in reason:
        fix = "name a language model that goes on with a text (AutoModelForCausalLM), without pictures"
    elif "does not recognize this architecture" in reason:
        fix = "install a newer transformers, or name another model"
    elif isinstance(error, ImportError) or "pip install" in reason:
        fix = "install what it names, or name the model that it was quantised from"
    return ProviderError(f"teacher.model: transformers can't load {folder}: {reason}", fix)


@torch.inference_mode()
def _try_out(model: Any, folder: Path) -> None:
    """Two texts of two tokens: what loads may yet not run, or be no causal model. Raises ProviderError."""
    ids = torch.tensor([[0, 0], [0, 1]], device=model.device)
    where, another = f"teacher.model: {folder}", "name another model"
    try:
        with uncompiled(is_quantised(folder)):
            output = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True)
        logits = output.logits.float()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ProviderError(
            f"{where} is loaded, but does not run on {model.device} in {dtype_name(model.dtype)} ({reason})",
            'set teacher.dtype = "fp32", or name the unquantised model',
        ) from error
    if torch.isnan(logits).any():
        raise ProviderError(
            f"{where} answers NaN: its weights are no numbers, or too large for {dtype_name(model.dtype)}",
            'set teacher.dtype = "fp32", or download it again',
        )
    before, differs = logits[:, 0], (logits[0, 0] - logits[1, 0]).abs().max()
    if differs > 0.1 * before.std():
        raise ProviderError(f"{where} is no causal language model: what follows a word changes what it says", another)
    if not {"cache", "past_key_values"} & {*output}:
        raise ProviderError(f"{where} keeps no keys and values of what it has read, without which it is asked", another)
