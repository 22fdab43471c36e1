"""What a finished student takes where people run it: its weights in each form, and the cache at each context.

Beside that a runtime needs room for one pass's activations, some MB to some hundred (llama.cpp calls it the compute
buffer), and a GGUF file holds the vocabulary, some MB. Neither is counted.
"""

from collections.abc import Iterator
from typing import Any, Final

import attrs

from bitnet_core.config.dry_run import DryRunConfig
from bitnet_core.dry_run.formulas import decode_bytes, prefill_bytes, sizes_of
from bitnet_core.dry_run.what_fits_table import CAPACITIES_GB, USABLE
from bitnet_core.export.gguf.widths import BLOCK, BLOCKS, padded_widths
from bitnet_core.export.gguf.write import TERNARY_TYPES
from bitnet_core.model.configuration import BitNetKDEConfig
from bitnet_core.ternary.packed_linear import CODES_PER_BYTE
from bitnet_core.ternary.packed_table import BLOCK as TABLE_BLOCK

CONTEXTS: Final = (2048, 8192, 32768)
"""Positions, beside the manifest's own."""
BLOCK_BYTES: Final = {"tq1_0": 54, "tq2_0": 66, "q2_0": 18}
"""Of a block of weights with its float16 scale: 256 in five codes a byte, 256 in four, 64 in four (ggml-common.h)."""
TABLE_BLOCK_BYTES = TABLE_BLOCK + 2
"""Q8_0, in which every form has embedding and head."""
FLOAT, HALF = 4, 2


@attrs.frozen(kw_only=True)
class Form:
    """A student as it lies on the disk and in memory."""

    name: str
    runs_in: str
    weights: int
    """Bytes of the tensors."""
    beside: int = 0
    """Bytes that the runtime makes of them and holds."""
    cache_a_position: int
    """Bytes of keys and values, all layers."""


def deployed(config: DryRunConfig, compute_bytes: int) -> list[dict[str, Any]]:
    """A row a form, the training's own first, with bytes at each context for `batch_size` sequences."""
    contexts = sorted({config.context, *CONTEXTS})
    rows = [_training_row(config, compute_bytes, contexts)]
    for form in (packed_form(config), *gguf_forms(config)):
        totals = {
            context: form.weights + form.beside + form.cache_a_position * config.batch_size * context
            for context in contexts
        }
        rows.append(_row(form.name, form.runs_in, form.weights, totals, config.context))
    return rows


def _training_row(config: DryRunConfig, compute_bytes: int, contexts: list[int]) -> dict[str, Any]:
    shapes = {context: attrs.evolve(config, context=context, devices=1, measure="never") for context in contexts}
    totals = {
        context: max(prefill_bytes(shape, compute_bytes), decode_bytes(shape, compute_bytes))
        for context, shape in shapes.items()
    }
    weights = sizes_of(config).total * FLOAT
    return _row("checkpoint", "torch, as it trains", weights, totals, config.context)


def _row(name: str, runs_in: str, weights: int, totals: dict[int, int], context: int) -> dict[str, Any]:
    return {
        "form": name,
        "runs_in": runs_in,
        "weights_bytes": weights,
        "contexts": [{"context": each, "total_bytes": total} for each, total in totals.items()],
        "fits_gb": [size for size in CAPACITIES_GB if totals[context] <= USABLE * size * 1e9],
    }


def packed_form(config: DryRunConfig) -> Form:
    """Two bits a weight in the CPU's packed runtime, which holds an int8 copy of the head and a float32 cache."""
    width, layers = config.hidden_size, config.num_hidden_layers
    head_width = width // config.num_attention_heads
    keys = head_width * config.num_key_value_heads
    attention = [(width, width), (width, keys), (width, keys), (width, width)]
    inner = config.intermediate_size
    matrices = [*attention, (width, inner), (width, inner), (inner, width)]
    codes = sum(outputs * (_up(inputs, CODES_PER_BYTE) // CODES_PER_BYTE + HALF) for inputs, outputs in matrices)
    norms = (2 * layers + 1) * width * FLOAT
    table = config.vocab_size * (width + HALF * _up(width, TABLE_BLOCK) // TABLE_BLOCK)
    tables = table * (1 if config.tie_word_embeddings else 2)
    return Form(
        name="packed",
        runs_in="the packed runtime, CPU",
        weights=layers * codes + norms + tables,
        beside=config.vocab_size * (_up(width, 16) + FLOAT),
        cache_a_position=layers * config.num_key_value_heads * (head_width + _up(head_width, 64)) * FLOAT,
    )


def gguf_forms(config: DryRunConfig) -> Iterator[Form]:
    """The ternary types, each with 8-bit tables and llama.cpp's float16 cache; widths that don't fit are padded."""
    model = BitNetKDEConfig(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
    )
    head_width = config.hidden_size // config.num_attention_heads
    for type_ in TERNARY_TYPES:
        block = BLOCKS.get(type_, BLOCK)
        widths = padded_widths(model, block)
        queries, keys = widths.heads * head_width, widths.kv_heads * head_width
        matrices = widths.hidden * (2 * queries + 2 * keys + 3 * widths.inner)
        norms = (2 * config.num_hidden_layers + 1) * widths.hidden * FLOAT
        tables = config.vocab_size * widths.hidden * (1 if config.tie_word_embeddings else 2)
        codes = config.num_hidden_layers * matrices // block * BLOCK_BYTES[type_]
        yield Form(
            name=f"gguf {type_}",
            runs_in="llama.cpp",
            weights=codes + norms + tables // TABLE_BLOCK * TABLE_BLOCK_BYTES,
            cache_a_position=2 * config.num_hidden_layers * keys * HALF,
        )


def _up(size: int, step: int) -> int:
    return -(-size // step) * step
