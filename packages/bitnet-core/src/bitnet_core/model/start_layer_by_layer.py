"""The checkpoint that a student starts from, read a layer or some rows at a time: for models larger than memory."""

import copy
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

import attrs
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig

from bitnet_core.config.student import StudentConfig
from bitnet_core.errors import CoreError
from bitnet_core.hardware import move
from bitnet_core.model.configuration import BitNetKDEConfig
from bitnet_core.model.init_from import (
    TOKEN_IDS,
    chosen_layers,
    config_like,
    read_config,
    read_weights,
    set_tying,
    weights_named,
)
from bitnet_core.model.modeling import BitNetKDEDecoderLayer, BitNetKDEForCausalLM
from bitnet_core.ternary.hadamard import HadamardTransform
from bitnet_core.weight_format import bitnet_format, weight_files

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
INDEX = "model.safetensors.index.json"


class FolderTensors(Mapping[str, Tensor]):
    """The tensors of a folder's safetensors by name, float32; each is read when it is asked for and kept nowhere."""

    def __init__(self, folder: Path) -> None:
        self._file_of: dict[str, Path] = {}
        for file in weight_files(folder):
            with safe_open(file, framework="pt") as opened:
                self._file_of |= dict.fromkeys(opened.keys(), file)
        self.stored = frozenset(self._file_of)
        if _EMBEDDING in self._file_of and _HEAD not in self._file_of:  # tied
            self._file_of[_HEAD] = self._file_of[_EMBEDDING]

    def __getitem__(self, name: str) -> Tensor:
        return self.rows(name, slice)

    def rows(self, name: str, part: "Part") -> Tensor:
        """Only the rows that `part` names are read."""
        with safe_open(self._file_of[name], framework="pt") as opened:
            stored = opened.get_slice(name if name in opened.keys() else _EMBEDDING)  # noqa: SIM118
            shape = stored.get_shape()
            tensor: Tensor = stored[part(shape[0])] if shape else stored[...]
        return tensor.float()

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)


Part = Callable[[int], slice]
"""Of so many rows, which; `slice` itself: all."""


@attrs.frozen(eq=False)
class Rows(Mapping[str, Tensor]):
    """Tensors by name, of each only the rows that `part` names."""

    source: Mapping[str, Tensor]
    part: Part

    def __getitem__(self, name: str) -> Tensor:
        if isinstance(self.source, FolderTensors):
            return self.source.rows(name, self.part)
        tensor = self.source[name]
        return tensor[self.part(len(tensor))]

    def __iter__(self) -> Iterator[str]:
        return iter(self.source)

    def __len__(self) -> int:
        return len(self.source)


@attrs.frozen(eq=False)
class LayeredStart:
    """A student before its training, and the same model unquantised, whose layers are made when they are asked for."""

    folder: Path
    student: BitNetKDEConfig
    unquantised: BitNetKDEConfig
    """As the checkpoint computes: without ternary weights and quantised activations, and without norms that only the
    student has. Where the student rotates inputs (`hadamard`) this one does too, which changes nothing it puts out."""
    source_config: PreTrainedConfig
    source: Mapping[str, Tensor]
    shapes: Mapping[str, Tensor]
    """The student's state, on the meta device."""
    chosen: tuple[int, ...]
    """The checkpoint's layers that are the student's."""
    prefix: str = attrs.field(default="model.layers.", init=False)
    """Before a layer's number in the names of its tensors."""

    @property
    def layers(self) -> int:
        return self.student.num_hidden_layers

    @property
    def vocab_size(self) -> int:
        return self.student.vocab_size

    @property
    def hidden_size(self) -> int:
        return self.student.hidden_size

    @property
    def widest(self) -> int:
        """The widest input of a linear layer."""
        config = self.student
        heads = config.num_attention_heads * int(config.head_dim or 0)
        return max(config.hidden_size, config.intermediate_size, heads)

    def layer(self, index: int, device: torch.device, *, ternary: bool) -> BitNetKDEDecoderLayer:
        """A decoder layer of the student or, not `ternary`, as the checkpoint's, for inference. Scales are not set.
        [float32]"""
        config = self.student if ternary else self.unquantised
        prefix = f"{self.prefix}{index}."
        with torch.device("meta"):
            layer = BitNetKDEDecoderLayer(config, index)
        wanted = {prefix + name: like for name, like in layer.state_dict().items() if not name.endswith("log_scale")}
        state = {name.removeprefix(prefix): tensor for name, tensor in self.tensors(wanted, config).items()}
        layer.to_empty(device=device)
        layer.load_state_dict(state, strict=False)  # without the scales
        for module in layer.modules():
            if isinstance(module, HadamardTransform):
                module.fill()
        return move(layer, device).eval().requires_grad_(False)

    def outside_layers(self) -> dict[str, Tensor]:
        """The tensors of no layer: embedding, last norm, and a head that is not tied. [float32, CPU]"""
        shapes = self.saved_shapes()
        wanted = {name: shapes[name] for name in shapes if not name.startswith(self.prefix)}
        return self.tensors(wanted, self.student)

    def saved_shapes(self) -> dict[str, Tensor]:
        """The student's state as it is saved, without a tied head, on the meta device."""
        tied = {_HEAD} if self.student.tie_word_embeddings else set()
        return {name: self.shapes[name] for name in self.shapes if name not in tied}

    def rows(self, names: Collection[str], part: Part) -> dict[str, Tensor]:
        """Of these tensors of the student, the rows that `part` names; the checkpoint's others are not read.

        A scale is made of the rows of its weight: ask for both together. [float32, CPU]
        """
        wanted = {name: self.shapes[name][part(len(self.shapes[name]))] for name in names}
        return attrs.evolve(self, source=Rows(self.source, part)).tensors(wanted, self.student)

    def skeleton(self) -> BitNetKDEForCausalLM:
        """The student on the meta device, in training mode."""
        with torch.device("meta"):
            model = BitNetKDEForCausalLM(self.student)
        model.generation_config = self.generation()
        return model.train()

    def tensors(self, wanted: Mapping[str, Tensor], config: BitNetKDEConfig) -> dict[str, Tensor]:
        try:
            found = weights_named(wanted, self.source, self.source_config, self.chosen, config)
        except SafetensorError as error:
            raise _unreadable(self.folder, error) from error
        for name, tensor in found.items():
            if tensor.shape != wanted[name].shape:
                shapes = " and ".join(str(tuple(each.shape)) for each in (tensor, wanted[name]))
                raise _unreadable(self.folder, f"{name}: shapes {shapes} in its weights and by config.json")
        return found

    def write_config(self, folder: Path) -> None:
        """``config.json`` and ``generation_config.json`` of the student, as transformers writes them."""
        config = copy.deepcopy(self.student)
        config.architectures, config.dtype = [BitNetKDEForCausalLM.__name__], torch.float32
        config.save_pretrained(folder)
        self.generation().save_pretrained(folder)

    def generation(self) -> GenerationConfig:
        """The student's, with the checkpoint's special tokens."""
        generation = GenerationConfig.from_model_config(self.student)
        try:
            theirs = GenerationConfig.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)
        except OSError:  # it has none
            theirs = generation
        for name in TOKEN_IDS:
            setattr(generation, name, getattr(theirs, name))
        return generation


def open_start(folder: Path, student: StudentConfig) -> LayeredStart:
    """The checkpoint in `folder` as the start of `student`.

    Weights come from the safetensors one by one where these have Llama's names and are plain, else the whole model is
    loaded.
    Raises CoreError where `student.init_from` would.
    """
    source_config = read_config(folder)
    chosen = chosen_layers(folder, student.layers, source_config.num_hidden_layers)
    config = config_like(source_config, student, len(chosen))
    try:
        source: Mapping[str, Tensor] = FolderTensors(folder)
        if _EMBEDDING not in source or bitnet_format(source_config.to_dict()) is not None:
            source, _ = read_weights(folder, source_config, student)
        set_tying(config, source)
    except (OSError, SafetensorError) as error:
        raise _unreadable(folder, error) from error
    with torch.device("meta"):
        shapes = BitNetKDEForCausalLM(config).state_dict()
    unquantised = copy.deepcopy(config)
    unquantised.quantise_weights, unquantised.activation_bits = False, 16
    unquantised.sublayer_norm = bool(getattr(source_config, "sublayer_norm", False))
    for each in (config, unquantised):
        each._attn_implementation = "sdpa"
    return LayeredStart(folder, config, unquantised, source_config, source, shapes, chosen)


def _unreadable(folder: Path, error: object) -> CoreError:
    return CoreError(
        f"student.init_from: the weights in {folder} can't be read: {error}", "copy or download the folder again"
    )


def write_index(folder: Path, file_of: Mapping[str, str], total_bytes: int) -> None:
    """transformers' index of a model in several safetensors: tensor's name → file's name."""
    record = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(file_of.items()))}
    (folder / INDEX).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
