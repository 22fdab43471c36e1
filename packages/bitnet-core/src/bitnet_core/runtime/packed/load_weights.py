"""A student's tensors for the packed runtime: a packed export's, memory-mapped, or a checkpoint's, packed here.

Names and shapes are `BitNetKDEForCausalLM`'s with ``packed = true``: `PackedBitLinear`'s codes and row scales.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import attrs
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bitnet_core.errors import CoreError
from bitnet_core.model.configuration import BitNetKDEConfig
from bitnet_core.model.inference_copy import snapped
from bitnet_core.model.modeling import BitNetKDEForCausalLM
from bitnet_core.model.read_checkpoint import damaged, load_model, read_state
from bitnet_core.model.start_student import llama_shaped
from bitnet_core.ternary.packed_table import unpack_table
from bitnet_core.weight_format import check_sizes


@attrs.frozen(eq=False)
class PackedWeights:
    config: BitNetKDEConfig
    tensors: Mapping[str, Tensor]
    """Codes uint8 and int8, everything else as it lies in the file; a tied head is not among them."""

    @property
    def head(self) -> str:
        """Whose table it is: "lm_head", or the embedding's."""
        return "lm_head" if any(name.startswith("lm_head.") for name in self.tensors) else EMBEDDING

    def rows(self, table: str, which: slice | Tensor) -> Tensor:
        """Rows of embedding or head, float32 [N, D]: 8-bit ones, or as older exports have them."""
        if f"{table}.weight" in self.tensors:
            return self.tensors[f"{table}.weight"][which].float()
        return unpack_table(*(self.tensors[f"{table}.{name}"][which] for name in ("codes", "block_scale")))


EMBEDDING = "model.embed_tokens"


def packed_weights(folder: Path) -> PackedWeights:
    """The student in `folder`. Raises CoreError: damaged, or not a ternary student of this project."""
    config = _config(folder)
    if not config.quantise_weights:
        raise CoreError(
            f"{folder}: its weights are not ternary, so they can't be packed", "run it with --runtime torch"
        )
    if config.packed:
        return PackedWeights(config, _mapped(folder, config))
    if (folder / "training.json").exists():
        read_state(folder)  # raises for a checkpoint of another version
    model = snapped(llama_shaped(load_model(folder), "the runtime packed"))
    state = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    return PackedWeights(model.config, state)


def _config(folder: Path) -> BitNetKDEConfig:
    file = folder / "config.json"
    try:
        config: BitNetKDEConfig = BitNetKDEConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # transformers checks with a library whose errors are plain Exceptions
        raise damaged(file, error) from error
    return config


def _mapped(folder: Path, config: BitNetKDEConfig) -> dict[str, Tensor]:
    """Every tensor as a view of its file: pages are read when they are used, and shared by all processes."""
    check_sizes(folder)
    tensors: dict[str, Tensor] = {}
    for file in _files(folder):
        try:
            with safe_open(file, framework="pt") as opened:
                tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 -- no mapping
        except (OSError, SafetensorError) as error:
            raise damaged_export(file, error) from error
    try:
        with torch.device("meta"):
            wanted = {name: _form(tensor) for name, tensor in BitNetKDEForCausalLM(config).state_dict().items()}
    except Exception as error:  # sizes that make no model: torch and transformers raise what they like
        raise damaged_export(folder / "config.json", error) from error
    if config.tie_word_embeddings:
        wanted.pop("lm_head.weight", None)
    found = {name: _form(tensor) for name, tensor in tensors.items()}
    if found != wanted:
        odd = sorted({*wanted} ^ {*found}) or [name for name in wanted if wanted[name] != found[name]]
        raise damaged_export(folder / "model.safetensors", f"other tensors than config.json calls for: {odd[0]}, ...")
    return tensors


def _form(tensor: Tensor) -> tuple[torch.Size, torch.dtype | None]:
    """What the C++ relies on: the shape, and which integers; a float may be of any width."""
    return tensor.shape, None if tensor.is_floating_point() else tensor.dtype


def _files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return [folder / "model.safetensors"]
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged_export(index, error) from error
    return [folder / str(name) for name in sorted(names)]


def damaged_export(file: Path, error: object) -> CoreError:
    return CoreError(f"{file}: not a complete export ({error})", "export the checkpoint again")
