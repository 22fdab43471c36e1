"""The packed student on a GPU: Triton's products inside the model's own code, one decode step as a CUDA graph.

Shapes: B = 1, T tokens, D residual width, V vocabulary. A quantiser hands integers to the layers behind it instead of
rounded numbers, once for all that share it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import StaticCache

from bitnet_core.errors import CoreError
from bitnet_core.hardware import half_dtype, move
from bitnet_core.model.inference_copy import snapped
from bitnet_core.model.kv_cache import named
from bitnet_core.model.modeling import BitNetKDEForCausalLM
from bitnet_core.model.read_checkpoint import load_model, read_state
from bitnet_core.model.start_student import llama_shaped
from bitnet_core.runtime.encode_prompt import checked_ids
from bitnet_core.runtime.packed.triton_products import QuantisedTokens, padded_codes, product, quantise
from bitnet_core.ternary.activation_quantiser import FakeQuantActivation
from bitnet_core.ternary.packed_linear import PackedBitLinear


class TokenQuantiser(nn.Module):
    """Takes `FakeQuantActivation`'s place."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, x: Tensor) -> QuantisedTokens:
        return quantise(x, self.bits)


class TernaryKernelLinear(nn.Module):
    """Takes `PackedBitLinear`'s place; gives `dtype`."""

    def __init__(self, layer: PackedBitLinear, dtype: torch.dtype) -> None:
        super().__init__()
        self.codes: Tensor
        self.row_scale: Tensor
        self.bias: Tensor | None
        self.register_buffer("codes", padded_codes(layer.codes))
        self.register_buffer("row_scale", layer.row_scale.float())
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().float())
        self.dtype = dtype

    def forward(self, x: QuantisedTokens) -> Tensor:
        return product(x, self.codes, self.row_scale, self.bias, dtype=self.dtype).view(*x.shape, -1)


ATTENTION = ("q_proj", "k_proj", "v_proj")
"""What goes into attention and its cache."""


def put_kernels(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace the layers of a packed student. Ternary products come in `dtype`.

    Those outside of attention come in float32 where that is float16: what gate and up make together, and what goes into
    the residual stream, may be beyond 65504.

    Raises CoreError where activations aren't quantised: there are no integers to multiply then.
    """
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, FakeQuantActivation):
                if child.bits == 16:
                    raise CoreError("the packed runtime has integer activations, 8 or 4 bits", "use the runtime torch")
                setattr(module, name, TokenQuantiser(child.bits))
            elif isinstance(child, PackedBitLinear):
                narrow = dtype is not torch.float16 or name in ATTENTION
                setattr(module, name, TernaryKernelLinear(child, dtype if narrow else torch.float32))


CHUNK = 2048
"""Tokens of a prompt that go through the layers together."""


_WARM_UP = 3
"""Steps before the capture: they compile the kernels and let cuBLAS take its memory."""


def packed_model(folder: Path) -> BitNetKDEForCausalLM:
    """The student in `folder`, a ``packed`` export or a checkpoint. Raises CoreError where it is damaged."""
    if (folder / "training.json").exists():
        read_state(folder)  # raises for a checkpoint of another version
    model = llama_shaped(load_model(folder), "the runtime packed")
    return model if model.config.packed else snapped(model)


class CudaEngine:
    """Logits of sequences of at most `context` tokens. The last sequence's keys and values stay in the cache.

    Residual stream and norms are float32; ternary products come in `dtype` (`half_dtype` of the device), in which
    attention, its cache and the head are computed.
    """

    instruction_set = "triton"

    def __init__(
        self,
        model: BitNetKDEForCausalLM,
        *,
        bits: int | None = None,
        context: int = 4096,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cuda",
    ) -> None:
        """`model` is packed, as `packed_model` gives it, and is used up.

        A CPU as `device` is for tests: Triton's interpreter, and no graph. Raises CoreError as `put_kernels`, and for
        a model that isn't packed.
        """
        if not model.config.packed:
            raise CoreError("its weights are not ternary, so they can't be packed", "use the runtime torch")
        if bits is not None:
            model.set_activation_bits(bits)
        self.device = torch.device(device)
        dtype = half_dtype(self.device) if dtype is None else dtype
        put_kernels(model, dtype)
        model.requires_grad_(False).eval()
        self.bits, self.head = model.config.activation_bits, str(dtype).removeprefix("torch.")
        self.context = min(context, model.config.max_position_embeddings)
        self._head_VD = model.lm_head.weight.to(self.device, dtype)
        tied, embedding = model.config.tie_word_embeddings, model.model.embed_tokens.weight
        self._embedding_VD = self._head_VD if tied else embedding.to(self.device, dtype)
        self.vocabulary = len(self._head_VD)
        self._body = model.model
        del self._body.embed_tokens  # it is here already
        move(self._body, self.device)
        self._cache: Any = StaticCache(config=model.config, max_cache_len=self.context)
        self._ids: list[int] = []
        self._id = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        self._position = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits_1V = self._step()  # the cache takes its memory
        if self.device.type == "cuda":
            self._capture()
        self._go_to(0)

    def logits(self, ids: Sequence[int], last: int | None = None) -> Tensor:
        """[`last` or T, V] float32, on the device: row t says what follows ``ids[: t + 1]``, for the last `last`
        positions or all. A prefix that the sequence shares with the one before is not computed again.

        Raises CoreError for a sequence longer than the context, and for an id that is no token.
        """
        ids, count = list(ids), len(ids) if last is None else last
        if not 0 < count <= len(ids) <= self.context:
            raise CoreError(
                f"logits of the last {count:,} of {len(ids):,} tokens: this context has {self.context:,}",
                "ask for at least one position, of a sequence that the context holds",
            )
        shared = next((at for at, (a, b) in enumerate(zip(ids, self._ids, strict=False)) if a != b), None)
        start = min(len(self._ids) if shared is None else shared, len(ids) - count)
        new = checked_ids(ids[start:], self.vocabulary)
        if start != len(self._ids):
            self._go_to(start)
        try:
            found_TV = self._after(new, start, count)
        except BaseException:  # Ctrl-C, no memory: what the cache holds from here on is nobody's
            self._go_to(start)
            raise
        self._ids = ids
        return found_TV

    def _after(self, new: Sequence[int], start: int, count: int) -> Tensor:
        """Logits [`count`, V] of `new`, which goes on from the `start` tokens that the cache holds."""
        if len(new) == 1:
            return self._one(new[0], start).to(torch.float32, copy=True)  # the next replay writes over it
        found: list[Tensor] = []
        for first in range(0, len(new), CHUNK):
            part = new[first : first + CHUNK]
            keep = max(0, first + len(part) - (len(new) - count))
            logits_TV = self._forward(
                torch.tensor([part], device=self.device),
                torch.arange(start + first, start + first + len(part), device=self.device)[None],
                min(keep, len(part)),
            )
            found.append(logits_TV.float())
        return torch.cat(found)

    def _one(self, id_: int, position: int) -> Tensor:
        self._id.fill_(id_)
        self._position.fill_(position)
        if self._graph is None:
            return self._step()
        self._graph.replay()
        return self._logits_1V

    def _step(self) -> Tensor:
        """One token's logits [1, V]; everything that changes from one to the next is on the device."""
        return self._forward(self._id, self._position, 1)

    @torch.no_grad()
    def _forward(self, ids_BT: Tensor, position_BT: Tensor, keep: int) -> Tensor:
        """Logits [keep, V] of the last `keep` positions."""
        hidden_BTD = self._body(
            inputs_embeds=nn.functional.embedding(ids_BT, self._embedding_VD).float(),
            position_ids=position_BT,
            use_cache=True,
            **named(self._cache),
        ).last_hidden_state
        kept_TD = hidden_BTD[0, hidden_BTD.shape[1] - keep :]
        return nn.functional.linear(kept_TD.to(self._head_VD.dtype), self._head_VD)

    def _go_to(self, length: int) -> None:
        """The cache holds the first `length` tokens from now on; what lies behind is written over."""
        self._ids = self._ids[:length]
        for layer in self._cache.layers:
            layer.cumulative_length.fill_(length)

    def _capture(self) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                self._go_to(0)
                self._step()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits_1V = self._step()
