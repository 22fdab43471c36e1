"""The packed student on this machine's CPU: the C++ forward pass with its weights, caches and head.

Shapes: T tokens, D residual width, V vocabulary, S positions, E head width.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from bitnet_core.errors import CoreError
from bitnet_core.kernels.compile import EXPONENTIAL, chosen_instruction_set, compiled, loaded, pointer
from bitnet_core.model.configuration import BitNetKDEConfig
from bitnet_core.runtime.contract import HeadKind
from bitnet_core.runtime.encode_prompt import checked_ids
from bitnet_core.runtime.packed.load_weights import EMBEDDING, PackedWeights

SOURCE = Path(__file__).with_name("ternary_cpu.cpp")
HEADERS = (SOURCE.with_name("ternary_dot.h"), EXPONENTIAL)
CHUNK = 128
"""Tokens that go through the layers together: enough to unpack weights rarely, few enough for the cache."""
_LANES = 16
_ROWS = 4096
"""Of the head, made at a time."""
_ACTIVATIONS = ("silu", "relu2")
_ROTARY = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings whose angles depend on nothing but the position."""


def load_library(instruction_set: str | None = None) -> tuple[ctypes.CDLL, str]:
    """The library and the instruction set that it was compiled for (see `chosen_instruction_set`).

    Raises NoCompilerError where it isn't compiled yet and can't be, or can't be loaded; CoreError for an instruction
    set that this machine hasn't got.
    """
    chosen = chosen_instruction_set(instruction_set)
    library = loaded(compiled(SOURCE, chosen, HEADERS))
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    library.bitnet_forward.argtypes = [pointer, pointer, number, number, number]
    library.bitnet_logits.argtypes = [pointer, pointer, number, number, pointer]
    library.bitnet_linear.argtypes = [pointer, pointer, number, number, number, pointer]
    for function in (library.bitnet_forward, library.bitnet_logits, library.bitnet_linear):
        function.restype = None
    return library, chosen


def _record(name: str, **fields: type) -> type[ctypes.Structure]:
    """A struct of ``ternary_cpu.cpp``."""
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


_int, _pointer = ctypes.c_int64, ctypes.c_void_p
Linear = _record("Linear", inputs=_int, outputs=_int, codes=_pointer, row_scale=_pointer, bias=_pointer)
Layer = _record(
    "Layer",
    **dict.fromkeys(("q", "k", "v", "o", "gate", "up", "down"), Linear),
    **dict.fromkeys(("input_norm", "post_norm", "q_norm", "k_norm", "attn_sub_norm", "ffn_sub_norm"), _pointer),
    keys=_pointer,
    values=_pointer,
)
Model = _record(
    "Model",
    **dict.fromkeys(("layers", "hidden", "inner", "heads", "kv_heads", "head_width", "context"), _int),
    **dict.fromkeys(("bits", "output_bits", "hadamard", "squared_relu"), _int),
    eps=ctypes.c_float,
    **dict.fromkeys(("final_norm", "cos", "sin", "layer"), _pointer),
)
Head = _record("Head", vocab=_int, width=_int, int8=_pointer, row_scale=_pointer, bf16=_pointer)


class CpuEngine:
    """Logits of sequences of at most `context` tokens. The last sequence's keys and values stay in the cache."""

    device = torch.device("cpu")

    def __init__(
        self,
        weights: PackedWeights,
        *,
        bits: int | None = None,
        head: HeadKind = "int8",
        context: int = 4096,
        instruction_set: str | None = None,
    ) -> None:
        """Raises CoreError for a student that the C++ has no words for; NoCompilerError, as `load_library`."""
        config = weights.config
        self.bits = config.activation_bits if bits is None else bits
        _check(config, self.bits)
        self.library, self.instruction_set = load_library(instruction_set)
        self.context = min(context, config.max_position_embeddings)
        self.head: HeadKind = head
        self.vocabulary, self.width = config.vocab_size, config.hidden_size
        self._weights = weights
        self._kept: list[object] = []  # what the structs point at
        self._model = self._model_struct(weights)
        self._head = self._head_struct(head)
        self._ids: list[int] = []

    @torch.no_grad()
    def logits(self, ids: Sequence[int], last: int | None = None) -> Tensor:
        """[`last` or T, V] float32: row t says what follows ``ids[: t + 1]``, for the last `last` positions or all.

        A prefix that the sequence shares with the one before is not computed again. Raises CoreError for a sequence
        longer than the context, and for an id that is no token.
        """
        ids, count = list(ids), len(ids) if last is None else last
        if not 0 < count <= len(ids) <= self.context:
            raise CoreError(
                f"logits of the last {count:,} of {len(ids):,} tokens: this context has {self.context:,}",
                "ask for at least one position, of a sequence that the context holds",
            )
        start = min(_shared(ids, self._ids), len(ids) - count)
        checked_ids(ids[start:], self.vocabulary)
        self._ids = ids[:start]
        out_TV = torch.empty(count, self.vocabulary)
        threads = torch.get_num_threads()
        for first in range(start, len(ids), CHUNK):
            part = ids[first : first + CHUNK]
            hidden_TD = self._weights.rows(EMBEDDING, torch.tensor(part))
            self.library.bitnet_forward(ctypes.byref(self._model), pointer(hidden_TD), len(part), first, threads)
            self._ids += part
            asked = max(first, len(ids) - count)
            if asked < first + len(part):
                rows = slice(asked - (len(ids) - count), first + len(part) - (len(ids) - count))
                self._put_logits(hidden_TD[asked - first :], out_TV[rows])
        return out_TV

    def _put_logits(self, hidden_TD: Tensor, out_TV: Tensor) -> None:
        missing = self._head.width - self.width
        padded = nn.functional.pad(hidden_TD, (0, missing)) if missing else hidden_TD
        self.library.bitnet_logits(
            ctypes.byref(self._head), pointer(padded), len(padded), torch.get_num_threads(), pointer(out_TV)
        )

    def _keep(self, tensor: Tensor | None) -> int | None:
        """Its address; it lives as long as this."""
        if tensor is None:
            return None
        tensor = tensor.detach().contiguous()
        self._kept.append(tensor)
        address: int = pointer(tensor)
        return address

    def _model_struct(self, weights: PackedWeights) -> ctypes.Structure:
        config, positions = weights.config, -(-self.context // _LANES) * _LANES
        head_width = int(config.head_dim or config.hidden_size // config.num_attention_heads)
        kv_heads = int(config.num_key_value_heads or config.num_attention_heads)
        padded_width = -(-head_width // 64) * 64
        layers = (Layer * config.num_hidden_layers)()
        for index in range(config.num_hidden_layers):
            layers[index] = self._layer_struct(weights, f"model.layers.{index}.")
            # Not written before they are used: pages of a long context that is never reached take no memory.
            layers[index].keys = self._keep(torch.empty(kv_heads, positions // _LANES, head_width, _LANES))
            layers[index].values = self._keep(torch.empty(kv_heads, positions, padded_width))
        self._kept.append(layers)
        cos_SE, sin_SE = _rotation(config, positions, head_width)
        return Model(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            inner=config.intermediate_size,
            heads=config.num_attention_heads,
            kv_heads=kv_heads,
            head_width=head_width,
            context=positions,
            bits=self.bits,
            output_bits=self.bits if config.hadamard else 8,
            hadamard=config.hadamard,
            squared_relu=config.hidden_act == "relu2",
            eps=config.rms_norm_eps,
            final_norm=self._keep(weights.tensors["model.norm.weight"].float()),
            cos=self._keep(cos_SE),
            sin=self._keep(sin_SE),
            layer=ctypes.addressof(layers),
        )

    def _layer_struct(self, weights: PackedWeights, prefix: str) -> ctypes.Structure:
        def vector(name: str) -> int | None:
            tensor = weights.tensors.get(prefix + name)
            return self._keep(None if tensor is None else tensor.float())

        def linear(name: str, inputs: int) -> ctypes.Structure:
            codes_OP = weights.tensors[f"{prefix}{name}.codes"]
            return Linear(
                inputs=inputs,
                outputs=len(codes_OP),
                codes=self._keep(codes_OP),
                row_scale=vector(f"{name}.row_scale"),
                bias=vector(f"{name}.bias"),
            )

        config = weights.config
        heads = config.num_attention_heads * int(config.head_dim or config.hidden_size // config.num_attention_heads)
        return Layer(
            **{each: linear(f"self_attn.{each}_proj", config.hidden_size) for each in ("q", "k", "v")},
            o=linear("self_attn.o_proj", heads),
            gate=linear("mlp.gate_proj", config.hidden_size),
            up=linear("mlp.up_proj", config.hidden_size),
            down=linear("mlp.down_proj", config.intermediate_size),
            input_norm=vector("input_layernorm.weight"),
            post_norm=vector("post_attention_layernorm.weight"),
            q_norm=vector("self_attn.q_norm.weight"),
            k_norm=vector("self_attn.k_norm.weight"),
            attn_sub_norm=vector("self_attn.attn_sub_norm.weight"),
            ffn_sub_norm=vector("mlp.ffn_sub_norm.weight"),
        )

    def _head_struct(self, kind: HeadKind) -> ctypes.Structure:
        width = -(-self.width // _LANES) * _LANES
        bf16_VW = torch.zeros(self.vocabulary, width, dtype=torch.bfloat16) if kind == "bf16" else None
        codes_VW = torch.empty(0 if kind == "bf16" else self.vocabulary, width, dtype=torch.int8)
        scale_V = torch.empty(len(codes_VW))
        for start in range(0, self.vocabulary, _ROWS):  # no float32 copy of the whole table
            rows = slice(start, start + _ROWS)
            weight_ND = self._weights.rows(self._weights.head, rows)
            if bf16_VW is not None:
                bf16_VW[rows, : self.width] = weight_ND
            else:
                codes_VW[rows], scale_V[rows] = int8_rows(weight_ND, width)
        if bf16_VW is not None:
            return Head(vocab=self.vocabulary, width=width, bf16=self._keep(bf16_VW))
        return Head(vocab=self.vocabulary, width=width, int8=self._keep(codes_VW), row_scale=self._keep(scale_V))


def int8_rows(weight_VD: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Rows as int8 [V, `width`] (zeros from D on) and their scales [V], float32: max |row| / 127."""
    weight_VD = weight_VD.float()
    scale_V = weight_VD.abs().amax(1).clamp(min=1e-30) / 127
    codes_VD = (weight_VD / scale_V[:, None]).round().to(torch.int8)
    return nn.functional.pad(codes_VD, (0, width - codes_VD.shape[1])), scale_V


def _shared(ids: list[int], known: list[int]) -> int:
    """Tokens at the start that are the same."""
    if ids[: len(known)] == known:  # each step of decoding
        return len(known)
    return next((at for at, (a, b) in enumerate(zip(ids, known, strict=False)) if a != b), min(len(ids), len(known)))


def _check(config: BitNetKDEConfig, bits: int) -> None:
    rotary = (config.rope_parameters or {}).get("rope_type", "default")
    if bits not in (8, 4):
        raise CoreError(f"the packed runtime has integer activations, 8 or 4 bits, not {bits}", "use the runtime torch")
    if config.num_attention_heads % int(config.num_key_value_heads or config.num_attention_heads):
        raise CoreError(
            f"config.json has {config.num_attention_heads} attention heads and {config.num_key_value_heads} of "
            "keys and values, which don't divide them: the model is damaged",
            "name another one",
        )
    if config.hidden_act not in _ACTIVATIONS:
        raise CoreError(f"the packed runtime can't do hidden_act = {config.hidden_act!r}", "use the runtime torch")
    if rotary not in _ROTARY:
        raise CoreError(
            f'the packed runtime can\'t do rope_type = "{rotary}", only {", ".join(_ROTARY)}', "use the runtime torch"
        )


def _rotation(config: BitNetKDEConfig, positions: int, head_width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [S, E / 2] as the model itself has them."""
    cos_BSE, sin_BSE = LlamaRotaryEmbedding(config)(torch.empty(1), torch.arange(positions)[None])
    if cos_BSE.shape[-1] != head_width:
        raise CoreError(
            "the packed runtime turns whole heads, and this model only a part of each", "use the runtime torch"
        )
    half = head_width // 2
    return cos_BSE[0, :, :half].float(), sin_BSE[0, :, :half].float()
