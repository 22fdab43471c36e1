"""Widths that GGUF's ternary types can hold: multiples of a block, reached by zeros that change nothing.

What is added is zero everywhere: columns of the embedding and the norm gains, rows and columns of the projections,
whole heads. A head of zeros attends evenly to values of zero; an FFN unit of zeros gives silu(0) · 0 = 0. Only RMSNorm
sees its width. With r = D / D', the mean of squares over D' is r times that over D, so eps' = r · eps and
gain' = √r · gain give the same values.
"""

import math

import attrs

from bitnet_core.errors import CoreError
from bitnet_core.export.published_architecture import architecture_of, head_width, kv_heads
from bitnet_core.model.configuration import BitNetKDEConfig

BLOCK = 256
"""Weights that share a scale in TQ1_0 and TQ2_0. F16 and F32 files are padded as these: they show what padding does."""
BLOCKS = {"q2_0": 64}
"""Of the types where it is another number."""
LARGEST_GROWTH = 4
"""How many times wider the residual stream may get before padding is no answer (see `_qwen2`, `_bitnet`)."""


@attrs.frozen
class Widths:
    """The sizes in the file."""

    hidden: int
    inner: int
    heads: int
    kv_heads: int
    shrink: float
    """r = D / D': what eps is multiplied by, and norm gains by its root."""


def padded_widths(config: BitNetKDEConfig, block: int = BLOCK) -> Widths:
    """The smallest sizes that hold the student in multiples of `block`. Raises CoreError where zeros can't make them
    exact."""
    architecture = architecture_of(config)
    if architecture == "bitnet":
        return _bitnet(config, block)
    widths = _llama(config, block) if architecture != "qwen2" else _qwen2(config, block)
    if architecture == "qwen3" and widths.hidden != config.hidden_size:
        raise CoreError(
            f"gguf: a student with qk_norm and hidden_size {config.hidden_size} can't be padded exactly: the "
            "norms of its heads share one eps in the file with those of the padded width",
            f"train with a hidden_size that is a multiple of {block}, or export hf or packed",
        )
    return widths


def _llama(config: BitNetKDEConfig, block: int) -> Widths:
    """Each width by itself. Heads come in groups (a key/value head and its queries), so that no query changes group."""
    hidden = _round_up(config.hidden_size, block)
    group = config.num_attention_heads // kv_heads(config)
    step = block // math.gcd(block, group * head_width(config))
    groups = _round_up(kv_heads(config), step)
    return Widths(
        hidden=hidden,
        inner=_round_up(config.intermediate_size, block),
        heads=groups * group,
        kv_heads=groups,
        shrink=config.hidden_size / hidden,
    )


def _qwen2(config: BitNetKDEConfig, block: int) -> Widths:
    """llama.cpp's has heads that together are as wide as the residual stream: both grow to one width."""
    group = config.num_attention_heads // kv_heads(config)
    width = group * head_width(config)
    hidden = _round_up(max(config.hidden_size, kv_heads(config) * width), math.lcm(block, width))
    if hidden > LARGEST_GROWTH * max(config.hidden_size, BLOCK):
        raise CoreError(
            f"gguf: a student with qkv_bias, hidden_size {config.hidden_size} and groups of {group} heads of "
            f"{head_width(config)} would have to grow to {hidden}: in llama.cpp's qwen2 the heads together are "
            "as wide as the residual stream",
            "train with other sizes, or export hf or packed",
        )
    return Widths(
        hidden=hidden,
        inner=_round_up(config.intermediate_size, block),
        heads=hidden // head_width(config),
        kv_heads=hidden // width,
        shrink=config.hidden_size / hidden,
    )


def _bitnet(config: BitNetKDEConfig, block: int) -> Widths:
    """SubLN normalises the attention's and the FFN's width too, and the file has one eps: all grow by one ratio."""
    group_width = config.num_attention_heads // kv_heads(config) * head_width(config)
    first = _round_up(config.hidden_size, block)
    for hidden in range(first, LARGEST_GROWTH * max(config.hidden_size, BLOCK) + 1, block):
        inner, rest = divmod(config.intermediate_size * hidden, config.hidden_size)
        if rest == 0 and inner % block == 0 and hidden % group_width == 0:
            return Widths(
                hidden=hidden,
                inner=inner,
                heads=hidden // head_width(config),
                kv_heads=hidden // group_width,
                shrink=config.hidden_size / hidden,
            )
    raise CoreError(
        f"gguf: a student with SubLN, hidden_size {config.hidden_size} and intermediate_size "
        f"{config.intermediate_size} can't be padded exactly: its norms share one eps in the file, so both "
        f"widths would have to grow by one ratio to multiples of {block}",
        f"train with widths that are multiples of {block}, or export hf or packed",
    )


def _round_up(size: int, step: int) -> int:
    return -(-size // step) * step
