"""The student: a Llama-shaped decoder with ternary weights and quantised activations, as a transformers model.

Norms, rotary embedding, masks, attention kernels and caches are transformers' own; only the linear layers and their
inputs differ from Llama, and the parameters keep Llama's names.

Shapes: B sequences, T positions, S positions seen so far (cache and T), D residual width, V vocabulary, H heads,
E head width.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from bitnet_core.kernels import cpu_training
from bitnet_core.model import kv_cache
from bitnet_core.model.configuration import BitNetKDEConfig
from bitnet_core.ternary.activation_quantiser import FakeQuantActivation, quantise_activations
from bitnet_core.ternary.bitlinear import BitLinear, quantised_once
from bitnet_core.ternary.hadamard import HadamardTransform
from bitnet_core.ternary.packed_linear import PackedBitLinear
from bitnet_core.ternary.packed_table import PackedEmbedding, PackedHead, TiedHead


class RMSNorm(LlamaRMSNorm):
    """Llama's, in one pass where that can be."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        gain: Tensor = self.weight
        if gain.dtype == torch.float32 and cpu_training.takes(hidden_states, gain):
            return cpu_training.rms_norm(hidden_states, gain, self.variance_epsilon)
        normed: Tensor = super().forward(hidden_states)
        return normed


def _rotated(query_BTHE: Tensor, key_BTHE: Tensor, cos_BTE: Tensor, sin_BTE: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys, turned by their positions' angles."""
    if cos_BTE.dtype == torch.float32 and cpu_training.takes(query_BTHE, key_BTHE, cos_BTE, sin_BTE):
        return cpu_training.rotate(query_BTHE, cos_BTE, sin_BTE), cpu_training.rotate(key_BTHE, cos_BTE, sin_BTE)
    rotated: tuple[Tensor, Tensor] = apply_rotary_pos_emb(query_BTHE, key_BTHE, cos_BTE, sin_BTE, unsqueeze_dim=2)
    return rotated


def _is_plain(mask: Any) -> bool:
    """No mask, or one of booleans for every pair of positions."""
    return mask is None or (type(mask) is Tensor and mask.dtype == torch.bool and mask.shape[-2] == mask.shape[-1])


def _linear(config: BitNetKDEConfig, inputs: int, outputs: int, bias: bool) -> nn.Module:
    if not config.quantise_weights:
        return nn.Linear(inputs, outputs, bias)
    if config.packed:
        return PackedBitLinear(inputs, outputs, bias)
    return BitLinear(inputs, outputs, bias, quantiser=config.weight_quantiser)


def _norm_if(wanted: bool, width: int, config: BitNetKDEConfig) -> nn.Module:
    return RMSNorm(width, eps=config.rms_norm_eps) if wanted else nn.Identity()


def _output_quantiser(config: BitNetKDEConfig, width: int) -> nn.Module:
    """What stands before o_proj and down_proj, whose inputs have long tails that only a rotation takes to 4 bits."""
    quantiser = FakeQuantActivation(config.activation_bits, low_bits=config.hadamard)
    return nn.Sequential(HadamardTransform(width), quantiser) if config.hadamard else quantiser


class BitNetKDEAttention(nn.Module):
    """Grouped-query attention; q, k and v share one quantised input."""

    def __init__(self, config: BitNetKDEConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        head_dim, kv_heads = config.head_dim, config.num_key_value_heads
        assert head_dim is not None  # LlamaConfig fills both in
        assert kv_heads is not None
        self.head_dim = head_dim
        self.num_key_value_groups = config.num_attention_heads // kv_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = True
        width, bias = config.hidden_size, config.attention_bias or config.qkv_bias
        queries, keys = config.num_attention_heads * head_dim, kv_heads * head_dim
        self.input_quantiser = FakeQuantActivation(config.activation_bits, low_bits=True)
        self.q_proj = _linear(config, width, queries, bias)
        self.k_proj = _linear(config, width, keys, bias)
        self.v_proj = _linear(config, width, keys, bias)
        self.q_norm = _norm_if(config.qk_norm, head_dim, config)
        self.k_norm = _norm_if(config.qk_norm, head_dim, config)
        self.attn_sub_norm = _norm_if(config.sublayer_norm, queries, config)
        self.output_quantiser = _output_quantiser(config, queries)
        self.o_proj = _linear(config, queries, width, config.attention_bias)

    def forward(
        self,
        hidden_BTD: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """`past_key_values` and `cache` are one thing, by its old and its new name."""
        cache = kv_cache.either(cache, past_key_values)
        mixed, weights = self.mixed_values(
            self.input_quantiser(hidden_BTD), position_embeddings, attention_mask, cache, **kwargs
        )
        return self.o_proj(mixed), weights

    def mixed_values(
        self,
        quantised_BTD: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """From the quantised input of q, k and v to that of o_proj, and the attention's weights where they are kept."""
        query_BTD = self.q_proj(quantised_BTD)
        heads_shape = (*query_BTD.shape[:-1], -1, self.head_dim)  # kernels' quantised inputs have a shape of their own
        query_BTHE = self.q_norm(query_BTD.view(heads_shape))
        key_BTHE = self.k_norm(self.k_proj(quantised_BTD).view(heads_shape))
        value_BTHE = self.v_proj(quantised_BTD).view(heads_shape)

        query_BTHE, key_BTHE = _rotated(query_BTHE, key_BTHE, *position_embeddings)
        # Under autocast the rotation is float32 and the values are not: one dtype for the kernel and the cache.
        query_BTHE, key_BTHE = query_BTHE.to(value_BTHE.dtype), key_BTHE.to(value_BTHE.dtype)
        dropout = self.config.attention_dropout if self.training else 0.0
        weights: Tensor | None = None
        own = self.config._attn_implementation == "sdpa" and cache is None and not dropout
        if (
            own
            and _is_plain(attention_mask)
            and cpu_training.takes(query_BTHE, key_BTHE, value_BTHE, dtype=query_BTHE.dtype)
        ):
            mixed_BTHE = cpu_training.attention(query_BTHE, key_BTHE, value_BTHE, attention_mask, self.scaling)
        else:
            mixed_BTHE, weights = self._attend(
                query_BTHE, key_BTHE, value_BTHE, attention_mask, cache, dropout=dropout, **kwargs
            )
        mixed = self.attn_sub_norm(mixed_BTHE.reshape(*query_BTD.shape[:-1], -1))
        return self.output_quantiser(mixed), weights

    def _attend(
        self,
        query_BTHE: Tensor,
        key_BTHE: Tensor,
        value_BTHE: Tensor,
        attention_mask: Tensor | None,
        cache: Cache | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """By the attention function that the config names."""
        query_BHTE, key_BHTE, value_BHTE = (x.transpose(1, 2) for x in (query_BTHE, key_BTHE, value_BTHE))
        if cache is not None:
            key_BHTE, value_BHTE = cache.update(key_BHTE, value_BHTE, self.layer_idx)
        attend: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        mixed_BTHE, weights = attend(
            self, query_BHTE, key_BHTE, value_BHTE, attention_mask, scaling=self.scaling, **kwargs
        )
        return mixed_BTHE, weights


class BitNetKDEMLP(nn.Module):
    """SwiGLU, or with another `hidden_act` on the gate; gate and up share one quantised input."""

    def __init__(self, config: BitNetKDEConfig) -> None:
        super().__init__()
        width, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.input_quantiser = FakeQuantActivation(config.activation_bits, low_bits=True)
        self.gate_proj = _linear(config, width, inner, bias)
        self.up_proj = _linear(config, width, inner, bias)
        self.activation = ACT2FN[config.hidden_act]
        self.is_swiglu = config.hidden_act in ("silu", "swish")
        self.ffn_sub_norm = _norm_if(config.sublayer_norm, inner, config)
        self.output_quantiser = _output_quantiser(config, inner)
        self.down_proj = _linear(config, inner, width, bias)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        return self.down_proj(self.inner(self.input_quantiser(hidden_BTD)))

    def inner(self, quantised_BTD: Tensor) -> Tensor:
        """From the quantised input of gate and up to that of down_proj."""
        return self.output_quantiser(self.ffn_sub_norm(self._gated(quantised_BTD)))

    def _gated(self, quantised_BTD: Tensor) -> Tensor:
        gate = self.gate_proj(quantised_BTD)
        if self.is_swiglu and cpu_training.takes(gate):
            return cpu_training.swiglu(gate, self.up_proj(quantised_BTD))
        gate = self.activation(gate)
        return gate * self.up_proj(quantised_BTD)


class BitNetKDEDecoderLayer(GradientCheckpointingLayer):
    """Pre-norm attention and SwiGLU, each added to the residual stream."""

    def __init__(self, config: BitNetKDEConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = BitNetKDEAttention(config, layer_idx)
        self.mlp = BitNetKDEMLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden_BTD: Tensor, **kwargs: Any) -> Tensor:
        attended_BTD, _ = self.self_attn(self.input_layernorm(hidden_BTD), **kwargs)
        hidden_BTD = hidden_BTD + attended_BTD
        return hidden_BTD + self.mlp(self.post_attention_layernorm(hidden_BTD))


class BitNetKDEPreTrainedModel(PreTrainedModel):
    """What transformers needs to know of the architecture."""

    config: BitNetKDEConfig
    config_class = BitNetKDEConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["BitNetKDEDecoderLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values", "cache"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict = {"log_scale", "row_scale"}  # noqa: RUF012 -- bfloat16 moves a scale
    _can_record_outputs = {"hidden_states": BitNetKDEDecoderLayer, "attentions": BitNetKDEAttention}  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Normal weights and scales that fit; what was loaded stays, so a checkpoint without scales gets them."""
        super()._init_weights(module)
        if isinstance(module, BitLinear) and module.log_scale is not None:
            init.copy_(module.log_scale, module.quantiser.log_scale_of(module.weight))
        elif isinstance(module, HadamardTransform):
            module.fill()

    def set_activation_bits(self, bits: int) -> None:
        """Quantises activations to 8 or 4 bits from now on; 16 is off. Kept in the config, so a checkpoint knows.

        With 4, the inputs of o_proj and down_proj stay at 8, unless a Hadamard transform turns them.
        """
        quantise_activations(self, bits)
        self.config.activation_bits = bits


def positions_of(attention_mask_BS: Tensor | None, length: int, seen: int, device: torch.device) -> Tensor:
    """Position ids [B or 1, T] of the last `length` of S positions, int64: tokens count from 0, padding doesn't count.

    So that a sequence has the same positions whether it is padded left, right or not at all.
    """
    if attention_mask_BS is None or attention_mask_BS.dim() != 2:
        return torch.arange(seen, seen + length, device=device)[None]
    positions_BS = attention_mask_BS.long().cumsum(-1).sub_(1).clamp_(min=0)
    return positions_BS[:, -length:]


def padded_causal_mask(decoder: "BitNetKDEModel", attention_mask_BT: Tensor) -> Any:
    """What the decoder makes of a mask [B, T], for `attention_mask`, without asking whether anything is padded at all:
    on a GPU the host would wait for the answer."""
    shape_BT0 = (*attention_mask_BT.shape, 0)
    return create_causal_mask(
        config=decoder.config,
        inputs_embeds=decoder.embed_tokens.weight.new_empty(shape_BT0),
        attention_mask=attention_mask_BT,
        allow_is_causal_skip=False,
        **kv_cache.named(None),
    )


class BitNetKDEModel(BitNetKDEPreTrainedModel):
    """The decoder without the head."""

    def __init__(self, config: BitNetKDEConfig) -> None:
        super().__init__(config)
        # No padding_idx: many tokenizers pad with the end token, whose embedding must learn.
        table: Any = PackedEmbedding if config.packed_tables else nn.Embedding
        self.embed_tokens: nn.Embedding = table(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(BitNetKDEDecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    @capture_outputs  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Final hidden states [B, T, D], after the last norm, as `last_hidden_state`.

        `attention_mask` [B, S], bool or integer: which positions are tokens, on either side of the padding. Hidden
        states at padding are finite and mean nothing. `use_cache` is on where the config says so, except in training.
        `past_key_values` and `cache` are one thing, by its old and its new name.
        """
        cache = kv_cache.either(cache, past_key_values)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        hidden_BTD = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache is None:
            use_cache = bool(self.config.use_cache) and not self.training
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        causal_mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden_BTD,
            attention_mask=attention_mask,
            position_ids=position_ids,  # only given ones may say that rows are packed: it reads them
            **kv_cache.named(cache),
        )
        if position_ids is None:
            seen = 0 if cache is None else cache.get_seq_length()
            position_ids = positions_of(attention_mask, hidden_BTD.shape[1], seen, hidden_BTD.device)
        position_embeddings = self.rotary_emb(hidden_BTD, position_ids)
        for layer in self.layers:
            hidden_BTD = layer(
                hidden_BTD,
                attention_mask=causal_mask,
                position_embeddings=position_embeddings,
                position_ids=position_ids,
                **kv_cache.named(cache),
                **kwargs,
            )
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_BTD), **kv_cache.named(cache))


class BitNetKDEForCausalLM(BitNetKDEPreTrainedModel, GenerationMixin):
    """The decoder with its language-model head, which stays in high precision in training (as do embeddings, norms)."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: BitNetKDEConfig) -> None:
        super().__init__(config)
        self.model = BitNetKDEModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head: nn.Linear = self._packed_head() if config.packed_tables else self._dense_head()
        self.post_init()

    def _dense_head(self) -> nn.Linear:
        return nn.Linear(self.config.hidden_size, self.config.vocab_size, bias=False)

    def _packed_head(self) -> Any:
        """What computes as the linear layer does, and has its `weight`."""
        self._tied_weights_keys = {}
        if self.config.tie_word_embeddings:
            return TiedHead(cast(PackedEmbedding, self.model.embed_tokens))
        return PackedHead(self.config.vocab_size, self.config.hidden_size)

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [B, T, V] (only the last `logits_to_keep` positions, if given); with `labels` [B, T] a mean CE, nats.

        Training goes through `self.model` and a loss that takes hidden states and `lm_head.weight`, so that it may
        avoid the [T, V] logits.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=kv_cache.either(cache, past_key_values),
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits_BTV = self.lm_head(outputs.last_hidden_state[:, keep])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits_BTV, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits_BTV,
            **kv_cache.named(kv_cache.cache_of(outputs)),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    @torch.no_grad()
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' `generate`, with each weight quantised once instead of once a token."""
        with quantised_once(self):
            return GenerationMixin.generate(self, *args, **kwargs)  # type: ignore[arg-type]


def has_own_head(head: Tensor | None, embedding: Tensor) -> bool:
    """Whether the head [V, D] holds other weights than the embedding, whatever the config says."""
    return head is not None and head is not embedding and not torch.equal(head, embedding)
