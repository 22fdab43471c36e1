"""What the weights in a model's folder are, told by its config.json and the heads of its files, without loading them:
plain numbers, BitNet's ternary ones, or quantised in another way, from which no student can start.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from bitnet_core.config.student import TEACHERS, problems_of_heads
from bitnet_core.errors import CoreError

LLAMA_SHAPED = ("llama", "mistral", "qwen2", "qwen3", "bitnet", "bitnet_kde")
"""The model types whose weights fit the student's places one to one."""

TERNARISED = "bitnet_kde"
"""`quant_method` of a model of another architecture that `ternarise` has made ternary."""

PLAIN = ("F64", "F32", "F16", "BF16")
"""safetensors' names of the dtypes whose numbers are the weights themselves."""
FIX = "name the unquantised checkpoint that it was made from (BitNet's own ternary format can start a student)"
_SECTIONS = ("quantization_config", "compression_config", "quantization")
"""transformers', the old compressed-tensors', MLX's."""
_SIDE_FILES = {"quantize_config.json": "GPTQ", "quant_config.json": "AWQ", "hf_quant_config.json": "ModelOpt"}
"""Where older tools wrote it, beside a config.json that says nothing."""


@attrs.frozen
class BitNetFormat:
    """How a ``quant_method = "bitnet"`` checkpoint computes with what it stores (transformers' BitNetQuantConfig)."""

    divides: bool
    """`weight_scale` divides the output (linear_class "bitlinear", always packed); else it multiplies it."""
    online: bool
    """Weights are full-precision masters, made ternary with their mean magnitude at each use; no scales are stored."""
    unconverted: tuple[str, ...]
    """Modules that are plain linear layers: names, parts of names or regular expressions."""

    def converts(self, module: str) -> bool:
        """Whether the linear layer `module` is ternary: the rule of transformers' ``should_convert_module``."""
        boundary = r"(?:(?<=\.)|(?=\.|$))"
        return not any(re.match(f"(?:{key}){boundary}", module) or module.endswith(key) for key in self.unconverted)


def bitnet_format(config: Mapping[str, Any]) -> BitNetFormat | None:
    """What a config.json says of its ternary weights; None: they aren't in BitNet's format."""
    section = _quantisation(config)
    if section is None or section.get("quant_method") != "bitnet":
        return None
    unconverted = section.get("modules_to_not_convert")
    packed = section.get("linear_class", "bitlinear") == "bitlinear"
    return BitNetFormat(
        divides=packed,
        online=not packed and section.get("quantization_mode") == "online",
        unconverted=("lm_head",) if unconverted is None else tuple(unconverted),
    )


def start_problem(folder: Path) -> str | None:
    """Why no student can start from the weights in `folder` as they are stored; None: nothing is known against it.

    What can't be read is no problem here: who loads the weights tells it better.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        section = _quantisation(config)
        format_ = bitnet_format(config)
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    if not isinstance(config, dict):
        return None
    if section is not None and section.get("quant_method") == TERNARISED:
        return None
    if section is not None and format_ is None:
        return f"its config.json has {_named(section)}: the numbers in its files are not the weights"
    if format_ is not None and section is not None and section.get("use_rms_norm"):
        return "its quantization_config has use_rms_norm = true: an RMSNorm in each layer, which the student hasn't got"
    if format_ is None and config.get("model_type") != "bitnet_kde":
        for name, tool in _SIDE_FILES.items():
            if (folder / name).is_file():
                return f"it has a {name}: its weights are quantised ({tool})"
    dtypes = {name: dtype for name, dtype, _ in _tensors(folder)}
    for name in sorted(dtypes):
        if problem := _tensor_problem(name, dtypes, format_):
            return problem
    return None


def _named(section: Mapping[str, Any]) -> str:
    method = section.get("quant_method")
    return "a quantization_config" + (f' of quant_method "{method}"' if method else "")


def _quantisation(config: Any) -> Mapping[str, Any] | None:
    """The outermost section on quantisation, however deep a composite config has it."""
    if not isinstance(config, dict):
        return None
    for name in _SECTIONS:
        if isinstance(found := config.get(name), dict) and found:
            return found
    inner = (_quantisation(value) for name, value in config.items() if name.endswith("_config"))
    return next((found for found in inner if found is not None), None)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the model in `folder`, as its index says where it has one."""
    try:
        index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
        return [folder / name for name in sorted(set(index["weight_map"].values()))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [folder / "model.safetensors"]


def _tensors(folder: Path) -> Iterator[tuple[str, str, list[int]]]:
    """Name, dtype and shape of every tensor.

    A safetensors file begins with its head: eight bytes of length, then JSON.
    """
    for path in weight_files(folder):
        try:
            with path.open("rb") as file:
                head = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), path.stat().st_size)))
            head.pop("__metadata__", None)
            yield from [(name, str(entry["dtype"]), list(map(int, entry["shape"]))) for name, entry in head.items()]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue


def check_sizes(folder: Path) -> None:
    """CoreError where config.json speaks of a far bigger model than lies beside it.

    To build it could take hours (a billion layers) or all memory, before anybody sees that no tensor fits.
    """
    for path in weight_files(folder):
        if path.exists() and not path.is_file():  # safetensors waits for ever for what a pipe will say
            raise CoreError(f"{path}: not a file", _COPY_AGAIN)
    shapes = [shape for _, _, shape in _tensors(folder)]
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        sizes = {name: value for name, value in config.items() if isinstance(value, int) and name in _SIZES}
    except (OSError, ValueError, AttributeError, RecursionError):
        return  # who loads the model tells it better
    if not shapes:
        return
    elements, hidden = sum(map(math.prod, shapes)), sizes.get("hidden_size", 1)
    for name, value in sizes.items():
        most = len(shapes) if name == "num_hidden_layers" else elements * _CODES_IN_AN_ELEMENT
        width = 1 if name in ("num_hidden_layers", "hidden_size") else max(1, hidden)
        if value * width > most:
            raise CoreError(
                f"{folder / 'config.json'}: {name} = {value} is more than the weights beside it have", _COPY_AGAIN
            )


_SIZES = (
    *("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size"),
    *("num_attention_heads", "num_key_value_heads", "head_dim"),
)
_CODES_IN_AN_ELEMENT = 32
"""At most, in any packed format: one bit each in an int32."""
_COPY_AGAIN = "copy the folder again, or export the checkpoint again"


def _tensor_problem(name: str, dtypes: Mapping[str, str], format_: BitNetFormat | None) -> str | None:
    owner, _, last = name.rpartition(".")
    plain = dtypes[name] in PLAIN
    if format_ is None or last != "weight":
        return None if plain or "weight" not in last else f"its {name} is stored as {dtypes[name]}: no plain weights"
    has_scale = f"{name}_scale" in dtypes
    if not plain and (format_.online or dtypes[name] not in ("U8", "I8")):
        return f"its {name} is stored as {dtypes[name]}, and its quantization_config doesn't say how to read that"
    if not plain and not has_scale:
        return f"its {name} is packed, and the scale of it ({last}_scale) is missing"
    if plain and not format_.online and owner.endswith("_proj") and format_.converts(owner):
        if format_.divides:
            return f"its {name} is not packed, as its quantization_config says (linear_class bitlinear)"
        if not has_scale:
            return f"the scale of its {name} ({last}_scale) is missing"
    return None


def start_problems(config: Mapping[str, Any]) -> list[str]:
    """Why a checkpoint with this ``config.json`` can't start a student, as far as that file says it."""
    kind = config.get("model_type")
    if kind not in LLAMA_SHAPED:
        return [f"its model_type is {kind!r}"]
    return problems_of_heads(config)


def architecture_problem(architecture: str, config: Mapping[str, Any]) -> str | None:
    """Why a checkpoint with this ``config.json`` has not the `architecture` of another than Llama's; None: it has."""
    kind = config.get("model_type")
    if kind == "bitnet_kde":
        return "a student with Llama's architecture"
    if bitnet_format(config) is not None:
        return "its weights are in BitNet's format, which the architecture llama reads"
    return None if architecture in (TEACHERS, kind) else f"its model_type is {kind!r}, not {architecture!r}"


def is_student(config: Mapping[str, Any]) -> bool:
    """Whether a model with this ``config.json`` is a student of this project, of any architecture."""
    return config.get("model_type") == "bitnet_kde" or is_ternarised(config)


def is_ternarised(config: Mapping[str, Any]) -> bool:
    """Whether it is transformers' own model, made ternary."""
    return (_quantisation(config) or {}).get("quant_method") == TERNARISED


def is_ternary(checkpoint: Path) -> bool:
    """Whether a model folder holds ternary weights: one of our students, or BitNet's format; False if unreadable."""
    try:
        config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        is_bitnet = bitnet_format(config) is not None
    except (OSError, ValueError, TypeError):
        return False
    if not isinstance(config, dict):
        return False
    if is_ternarised(config):
        return True
    return is_bitnet or (config.get("model_type") == "bitnet_kde" and bool(config.get("quantise_weights", True)))


def start_refused(folder: object, problems: list[str]) -> CoreError:
    """The error for what `start_problems` found."""
    return CoreError(
        f"student.init_from: {folder} can't start a student: {'; '.join(problems)}",
        f'set student.architecture = "{TEACHERS}", which takes any; or choose a Llama-shaped checkpoint '
        f'({", ".join(LLAMA_SHAPED)}), or start from scratch with init_from = ""',
    )
