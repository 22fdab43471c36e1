"""Peak bytes of each phase, in closed form, and the table of what fits where. Loads no torch.

Symbols: N positions of a batch, D residual width, I width of the SwiGLU, Q and K widths of all query and all key heads,
V vocabulary, L layers, c bytes of the autocast dtype. Parameters, gradients and Adam's moments are float32, and so is
the residual stream. What a kernel needs inside itself isn't counted.
"""

import attrs

from bitnet_core.config.dry_run import DryRunConfig

FLOAT = 4


INDEX = 8


@attrs.frozen(kw_only=True)
class Sizes:
    """Numbers of parameters, by what becomes of them."""

    query: int
    key: int
    inner: int
    """D·I: a matrix of the SwiGLU."""
    layer: int
    """All of one layer: matrices, scales and norms."""
    vocabulary: int
    """V·D: the embedding, or the head."""
    total: int


def sizes_of(config: DryRunConfig) -> Sizes:
    width, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    queries, keys = width, width // heads * config.num_key_value_heads
    query, key, mlp = width * queries, width * keys, width * inner
    scales = queries + 2 * keys + width + 2 * inner + width
    layer = 2 * query + 2 * key + 3 * mlp + scales + 2 * width
    vocabulary = config.vocab_size * width
    tables = vocabulary * (1 if config.tie_word_embeddings else 2)
    total = config.num_hidden_layers * layer + tables + width
    return Sizes(query=query, key=key, inner=mlp, layer=layer, vocabulary=vocabulary, total=total)


def ternary_parameters(config: DryRunConfig) -> int:
    """Matrices that are held as ternary codes."""
    sizes = sizes_of(config)
    return config.num_hidden_layers * (2 * sizes.query + 2 * sizes.key + 3 * sizes.inner)


def moment_bytes(config: DryRunConfig, parameters: int) -> int:
    """Adam's two moments: float32, or 8 bits with a float32 for each block of 256."""
    return 2 * parameters * FLOAT if config.optimizer == "adamw" else 2 * (parameters + parameters // 256 * FLOAT)


def cache_bytes(config: DryRunConfig, compute_bytes: int) -> int:
    """Keys and values of every layer at the full context."""
    keys = config.hidden_size // config.num_attention_heads * config.num_key_value_heads
    return 2 * config.num_hidden_layers * config.batch_size * config.context * keys * compute_bytes


def layer_activations(config: DryRunConfig, compute_bytes: int) -> int:
    """What one layer's forward pass leaves for its backward pass, its input included."""
    positions, width, inner = config.batch_size * config.context, config.hidden_size, config.intermediate_size
    keys = width // config.num_attention_heads * config.num_key_value_heads
    norms = 2 * (2 * positions * width * FLOAT)  # what a norm reads and the normalised, each before its gain
    shared_inputs = 2 * positions * width * compute_bytes  # of q, k, v; of gate, up
    attention = _attention_activations(config, compute_bytes)
    output = positions * width * compute_bytes  # the quantised input of o
    swiglu = 4 * positions * inner * compute_bytes  # gate, its SiLU, up, the quantised input of down
    return norms + shared_inputs + positions * (width + 2 * keys) * compute_bytes + attention + output + swiglu


def _attention_activations(config: DryRunConfig, compute_bytes: int) -> int:
    """Beyond q, k and v: the mixed values, and the mask as the kernel reads it or the attention matrices."""
    batch, context, heads = config.batch_size, config.context, config.num_attention_heads
    square = batch * context**2
    repeated = 0
    if config.num_key_value_heads != heads:  # with a mask, keys and values are repeated for every query head
        shared = config.num_key_value_heads / heads
        repeated = int(2 * batch * context * config.hidden_size * compute_bytes * (1 - shared))
    if config.attention == "eager":
        # the probabilities in float32, as softmax keeps them, and in the dtype of the product
        return repeated + heads * square * (FLOAT + (compute_bytes if compute_bytes != FLOAT else 0))
    mixed = batch * context * config.hidden_size * compute_bytes
    return repeated + mixed + heads * batch * context * FLOAT + square * compute_bytes


def loss_bytes(config: DryRunConfig, compute_bytes: int, on_cpu: bool) -> int:
    """The chunked loss at its peak, its two gradients included."""
    rows, width, vocabulary = config.batch_size * (config.context - 1), config.hidden_size, config.vocab_size
    chunk = min(config.chunk_tokens, rows)
    narrow = compute_bytes != FLOAT
    tile = max(1, min(chunk, (4 << 20) // (vocabulary * FLOAT))) if on_cpu else chunk
    product = min(4096, vocabulary) if on_cpu else vocabulary
    hidden = rows * width * (2 * FLOAT + (compute_bytes if narrow else 0))  # gathered, cast, gradient
    head = vocabulary * width * (FLOAT + (compute_bytes if narrow else 0))
    targets = rows * config.top_k * (INDEX + 2 * FLOAT) + rows * 7 * INDEX
    return (
        hidden
        + head
        + targets
        + chunk * vocabulary * compute_bytes
        + 2 * tile * vocabulary * FLOAT
        + product * width * compute_bytes
    )


def predict(config: DryRunConfig, *, compute_bytes: int, on_cpu: bool) -> dict[str, int]:
    """Peak bytes of each of `bitnet_core.dry_run.run_phases.PHASES` on one of `config.devices` devices."""
    first, steady = train_bytes(config, compute_bytes, on_cpu)
    return {
        "load": load_bytes(config),
        "prefill": prefill_bytes(config, compute_bytes),
        "decode": decode_bytes(config, compute_bytes),
        "train_a8": first,
        "train_a4": steady,
    }


def load_bytes(config: DryRunConfig) -> int:
    """The masters with a head of their own (a tied one is let go of at the end), which comes after the scales' fit."""
    sizes = sizes_of(config)
    untied = sizes.total + (sizes.vocabulary if config.tie_word_embeddings else 0)
    fitting = 2 * max(sizes.inner, sizes.query)  # two copies of the largest matrix
    return max(untied, untied - sizes.vocabulary + fitting) * FLOAT


def _held_bytes(config: DryRunConfig, compute_bytes: int) -> int:
    """The masters, and the quantised weights that generation holds."""
    return sizes_of(config).total * FLOAT + ternary_parameters(config) * compute_bytes


def prefill_bytes(config: DryRunConfig, compute_bytes: int) -> int:
    """Weights, cache, and the widest place of the last layer: the input of down being quantised, or the attention."""
    positions, width, inner = config.batch_size * (config.context - 1), config.hidden_size, config.intermediate_size
    narrow = compute_bytes != FLOAT
    # before and after the attention, the norm's; what was attended to, the quantised
    swiglu = positions * width * (3 * FLOAT + 2 * compute_bytes) + _swiglu_peak(positions * inner, compute_bytes)
    attention = 0
    if config.attention == "eager":
        matrices = config.batch_size * config.num_attention_heads * (config.context - 1) ** 2
        attention = positions * width * (2 * FLOAT + 4 * compute_bytes)
        attention += matrices * (2 * FLOAT + (compute_bytes if narrow else 0))
    cache = cache_bytes(config, compute_bytes) * (config.context - 1) // config.context
    head = sizes_of(config).vocabulary * compute_bytes if narrow else 0
    last = positions * width * FLOAT + config.batch_size * config.vocab_size * compute_bytes
    return _held_bytes(config, compute_bytes) + cache + max(swiglu, attention, head + last)


def _swiglu_peak(values: int, compute_bytes: int) -> int:
    """Of N·I values, without gradient: gate, up and their product; or the product, in float32, and its codes."""
    return values * max(3 * compute_bytes, FLOAT + compute_bytes + (FLOAT if compute_bytes != FLOAT else 0))


def decode_bytes(config: DryRunConfig, compute_bytes: int) -> int:
    """Weights, autocast's copy of the head since the prefill, and the logits or a layer's keys being replaced."""
    head = sizes_of(config).vocabulary * compute_bytes if compute_bytes != FLOAT else 0
    cache = cache_bytes(config, compute_bytes)
    logits = config.batch_size * config.vocab_size * compute_bytes
    replaced = cache // config.num_hidden_layers // 2
    return _held_bytes(config, compute_bytes) + cache + head + max(logits, replaced)


def train_bytes(config: DryRunConfig, compute_bytes: int, on_cpu: bool) -> tuple[int, int]:
    """The first step, before which there are no moments, and any later one."""
    sizes = sizes_of(config)
    shards = config.devices
    masters = sizes.total * FLOAT // shards
    moments = moment_bytes(config, sizes.total) // shards
    gradients = sizes.total * FLOAT // shards
    gathered = 0 if shards == 1 else 2 * (sizes.layer + sizes.vocabulary) * FLOAT

    # The two gradients of a tied table, and their sum, exist beside each other.
    adding = 2 * sizes.vocabulary * FLOAT if config.tie_word_embeddings else 0
    activations = max(_points_of_a_step(config, compute_bytes, on_cpu))
    first = masters + gathered + max(activations, gradients + max(adding, moments))
    steady = masters + gathered + moments + max(activations, gradients + adding)
    return first, steady


def _points_of_a_step(config: DryRunConfig, compute_bytes: int, on_cpu: bool) -> tuple[int, ...]:
    """Activations, gradients and working space, where they may be at their most."""
    sizes, layers = sizes_of(config), config.num_hidden_layers
    narrow = compute_bytes != FLOAT
    positions = config.batch_size * config.context
    values = positions * config.intermediate_size
    square = config.batch_size * config.context**2
    stream = positions * config.hidden_size * FLOAT
    stream_cast = positions * config.hidden_size * compute_bytes
    one_layer = layer_activations(config, compute_bytes)
    kept = stream if config.gradient_checkpointing else one_layer
    recomputed = one_layer - stream if config.gradient_checkpointing else 0
    head = sizes.vocabulary * FLOAT

    end_of_forward = layers * kept + 3 * stream + loss_bytes(config, compute_bytes, on_cpu)
    # A layer's forward pass is widest where the input of down is quantised. With checkpointing it happens again in the
    # backward pass, where there are gradients.
    quantising = layers * kept + recomputed + values * (2 if narrow else 1) * FLOAT + stream + stream_cast
    if config.gradient_checkpointing:
        quantising += head + stream + (stream_cast if narrow else 0)
    # LSQ's gradient of one matrix: its quotients, rounding errors and float32 copy, beside the gradient itself.
    working = max(sizes.inner, sizes.query) * (3 * FLOAT + compute_bytes)
    flowing = 2 * stream + values * compute_bytes
    first_and_last = [
        done * sizes.layer * FLOAT // config.devices + (layers - done) * kept + recomputed + working + flowing + head
        for done in (0, layers - 1)
    ]
    matrices = 0
    if config.attention == "eager":  # the softmax, its gradient and that of the scores
        below = layers * stream if config.gradient_checkpointing else (layers - 1) * one_layer + stream
        matrices = below + 3 * stream + head + 3 * config.num_attention_heads * square * FLOAT
    return tuple(square + point for point in (end_of_forward, quantising, *first_and_last, matrices))
