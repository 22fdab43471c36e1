"""Where a student's first weights come from: chosen layers of a checkpoint (Llama, Mistral, Qwen), or chance."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel

from bitnet_core.config.student import FROM_TEACHER, StudentConfig, problems_of_heads
from bitnet_core.errors import CoreError, own_code_refused
from bitnet_core.model.configuration import BitNetKDEConfig
from bitnet_core.model.dense_checkpoint import READ_ERRORS, load_dense, unreadable
from bitnet_core.model.find_layers_and_head import embedding, head
from bitnet_core.model.modeling import BitNetKDEForCausalLM, has_own_head
from bitnet_core.model.progress_bars import no_progress_bars
from bitnet_core.model.start_from_bitnet import read_bitnet
from bitnet_core.ternary.hadamard import HadamardTransform
from bitnet_core.ternary.weight_quantisers import WEIGHT_QUANTISERS
from bitnet_core.weight_format import FIX, bitnet_format, check_sizes, start_problem, start_problems, start_refused

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_SHAPE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "rope_parameters",
    "attention_bias",
    "mlp_bias",
    "tie_word_embeddings",
    "qkv_bias",
    "qk_norm",
    "hidden_act",
)
"""What a student takes over from the checkpoint's config, beside the special tokens."""

ACTIVATIONS = ("silu", "relu2")
"""Of a start's gates: Llama's, and the squared ReLU of BitNet b1.58 2B4T."""
_SWITCHES = {"qwen2": {"qkv_bias": True}, "qwen3": {"qk_norm": True}}
"""What these architectures have without a word in their config."""


def build_student(
    config: StudentConfig,
    teacher_folder: Path | None = None,
    vocab_size: int | None = None,
    *,
    bos_token_id: int | None = None,
    eos_token_id: int | None = None,
    pad_token_id: int | None = None,
    seed: int = 0,
) -> BitNetKDEForCausalLM:
    """The student that the manifest asks for, on the CPU, float32, in training mode.

    ``config.init_from`` is the folder of a checkpoint, "teacher" (that is `teacher_folder`), or "" for random weights.
    `vocab_size` is the student tokenizer's (ids 0..vocab_size - 1 occur in the traces); None: the checkpoint's. The
    special ids are used from scratch; a checkpoint brings its own. Random weights depend on `seed` alone.
    `freeze_embeddings` takes the gradient from the embedding and the head.

    Raises:
        CoreError: the starting point is missing or not Llama-shaped, a layer is not there, the vocabulary doesn't fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.init_from:
            model = init_from(starting_folder(config, teacher_folder), config)
        elif vocab_size is None:
            raise CoreError("random weights need vocab_size", "give that of the student's tokenizer: len(tokenizer)")
        else:
            ids: dict[str, Any] = {
                "bos_token_id": bos_token_id,
                "eos_token_id": eos_token_id,
                "pad_token_id": pad_token_id,
            }
            model = BitNetKDEForCausalLM(_scratch_config(config, vocab_size, ids))
    if vocab_size is not None:
        check_vocabulary(model.config.vocab_size, vocab_size)
    freeze_embeddings(model, config.freeze_embeddings)
    return model.train()


def freeze_embeddings(model: PreTrainedModel, frozen: bool) -> None:
    """Take the gradient from the embedding and the head, or let them have it."""
    for table in (head(model), embedding(model)):
        table.weight.requires_grad_(not frozen)


def check_vocabulary(known: int, wanted: int) -> None:
    """CoreError where the checkpoint knows fewer tokens than the student's tokenizer has."""
    if wanted > known:
        raise CoreError(
            f"student.init_from: the checkpoint knows {known} tokens, the student's tokenizer has {wanted}",
            'use the tokenizer that belongs to the checkpoint, or start from scratch with init_from = ""',
        )


@no_progress_bars()
def init_from(folder: Path, config: StudentConfig) -> BitNetKDEForCausalLM:
    """A student of the checkpoint's shape with the layers `config.layers` (all, if empty) and its weights, float32.

    The row scales are the least-squares fit of the weights; a `bitnet_kde` checkpoint keeps its learned ones, one in
    BitNet's ternary format (``quant_method = "bitnet"``) its codes and scales. Weights are read from safetensors only.
    A head that differs from the embedding stays one of its own, also where the config calls the two tied (adapters
    that were merged leave such files).

    Raises:
        CoreError: no checkpoint in `folder`, an architecture that is not Llama's, a layer that it hasn't got, or
            weights that are quantised in another way.
    """
    source_config = read_config(folder)
    layers = chosen_layers(folder, config.layers, source_config.num_hidden_layers)
    student_config = config_like(source_config, config, len(layers))
    source, generation = read_weights(folder, source_config, config)
    set_tying(student_config, source)
    state = _chosen_weights(source, source_config, layers, student_config)
    model: BitNetKDEForCausalLM = BitNetKDEForCausalLM.from_pretrained(
        None, config=student_config, state_dict=state, dtype=torch.float32, trust_remote_code=False
    )
    if generation is not None and model.generation_config is not None:
        for name in TOKEN_IDS:
            setattr(model.generation_config, name, getattr(generation, name))
    return model


def starting_folder(config: StudentConfig, teacher_folder: Path | None) -> Path:
    if config.init_from != FROM_TEACHER:
        return Path(config.init_from)
    if teacher_folder is None:
        raise CoreError(
            'student.init_from = "teacher", but this teacher\'s weights are not here (a hosted model?)',
            'name a checkpoint\'s folder, or start from scratch with init_from = ""',
        )
    return teacher_folder


def read_config(folder: Path) -> PreTrainedConfig:
    """The config.json of a model that a student can start from. Raises CoreError for any other."""
    if not (folder / "config.json").is_file():
        raise CoreError(
            f"student.init_from: there is no config.json in {folder}",
            "name a folder that transformers' save_pretrained wrote (config.json and *.safetensors)",
        )
    check_sizes(folder)
    if problem := start_problem(folder):
        raise CoreError(f"student.init_from: {folder} can't start a student: {problem}", FIX)
    try:
        # As it stands: transformers refuses some sizes in its own words, and some only when it saves.
        problems = start_problems(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        config = (
            None if problems else AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        )
    except Exception as error:  # transformers checks a config with a library whose errors are plain Exceptions
        raise own_code_refused(f"student.init_from: {folder}", error) or CoreError(
            f"student.init_from: {folder / 'config.json'} can't be read: {error}", "copy or download the folder again"
        ) from error
    if config is None or (problems := _unlike_llama(config)):
        raise start_refused(folder, problems)
    return config


def _unlike_llama(config: PreTrainedConfig) -> list[str]:
    """What only transformers knows, with its defaults."""
    if getattr(config, "sliding_window", None) is not None:
        return [f"it attends within a sliding window of {config.sliding_window} tokens"]
    if config.hidden_act not in ACTIVATIONS:
        return [f"its activation is {config.hidden_act!r}, not one of {', '.join(ACTIVATIONS)}"]
    return problems_of_heads(config.to_dict())


def chosen_layers(folder: Path, layers: Sequence[int], available: int) -> tuple[int, ...]:
    missing = [index for index in layers if not 0 <= index < available]
    if missing:
        raise CoreError(
            f"student.layers: {folder} has layers 0 to {available - 1}; {', '.join(map(str, missing))} "
            f"{'is' if len(missing) == 1 else 'are'} not among them",
            f"name layers from 0 to {available - 1}",
        )
    return tuple(layers) or tuple(range(available))


@no_progress_bars()
def read_weights(
    folder: Path, source: PreTrainedConfig, config: StudentConfig
) -> tuple[dict[str, Tensor], GenerationConfig | None]:
    """All of the checkpoint's tensors by Llama's names, float32, and its token ids; CoreError for missing ones."""
    format_ = bitnet_format(source.to_dict())
    if format_ is None:
        model = load_dense(folder)
        return model.state_dict(), model.generation_config
    try:
        weights = read_bitnet(folder, source, format_, config)
        has_own = (folder / "generation_config.json").is_file()
        generation: Any = GenerationConfig.from_pretrained(folder, trust_remote_code=False) if has_own else None
        return weights, generation or GenerationConfig.from_model_config(source)
    except READ_ERRORS as error:
        raise unreadable(folder, error) from error


def _quantiser_settings(config: StudentConfig) -> dict[str, Any]:
    return {
        "quantise_weights": config.quantise_weights,
        "activation_bits": config.activation_bits,
        "sublayer_norm": config.sublayer_norm,
        "weight_quantiser": config.weight_quantiser,
        "hadamard": config.hadamard,
    }


def config_like(source: PreTrainedConfig, config: StudentConfig, layers: int) -> BitNetKDEConfig:
    """The configuration of a student of the source's shape with so many layers."""
    if (getattr(source, "sublayer_norm", False) or source.model_type == "bitnet") and not config.sublayer_norm:
        raise CoreError("student.init_from: the checkpoint has SubLN norms", "set sublayer_norm = true under [student]")
    shape = {name: getattr(source, name) for name in (*_SHAPE, *TOKEN_IDS) if hasattr(source, name)}
    shape |= _SWITCHES.get(source.model_type, {})
    return BitNetKDEConfig(**shape, num_hidden_layers=layers, **_quantiser_settings(config))


def set_tying(config: BitNetKDEConfig, source: Mapping[str, Tensor]) -> None:
    """Untie the student's head from its embedding where the source's head is one of its own."""
    if config.tie_word_embeddings:
        config.tie_word_embeddings = not has_own_head(source.get("lm_head.weight"), source["model.embed_tokens.weight"])


def _scratch_config(config: StudentConfig, vocab_size: int, token_ids: dict[str, Any]) -> BitNetKDEConfig:
    return BitNetKDEConfig(
        vocab_size=vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_position_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        rms_norm_eps=1e-5,
        tie_word_embeddings=config.tie_word_embeddings,
        qkv_bias=config.qkv_bias,
        qk_norm=config.qk_norm,
        **token_ids,
        **_quantiser_settings(config),
    )


def _chosen_weights(
    source: Mapping[str, Tensor], source_config: PreTrainedConfig, layers: Sequence[int], config: BitNetKDEConfig
) -> dict[str, Tensor]:
    """The student's whole state: the source's tensors under their new layer numbers, and what the source hasn't got."""
    with torch.device("meta"):
        wanted = BitNetKDEForCausalLM(config).state_dict()
    return weights_named(wanted, source, source_config, layers, config)


def weights_named(
    wanted: Mapping[str, Tensor],
    source: Mapping[str, Tensor],
    source_config: PreTrainedConfig,
    layers: Sequence[int],
    config: BitNetKDEConfig,
) -> dict[str, Tensor]:
    """Of a student's state the tensors named in `wanted` (of their shapes; any device), as it starts with them."""
    scales = {name for name in wanted if name.endswith(".log_scale")}
    state = {name: _weight_for(name, source, layers, wanted[name]) for name in wanted.keys() - scales}
    turned = set()
    if config.hadamard != getattr(source_config, "hadamard", False):
        # Their inputs come rotated (or no longer do): rotating the weights too leaves the products as they were.
        turned = {name for name in state if name.endswith(("o_proj.weight", "down_proj.weight"))}
        state |= {name: HadamardTransform(state[name].shape[1])(state[name]) for name in turned}
    for name in scales:
        learned, weight_name = source.get(_source_name(name, layers)), name.removesuffix("log_scale") + "weight"
        if learned is None or weight_name in turned:
            state[name] = WEIGHT_QUANTISERS[config.weight_quantiser].log_scale_of(state[weight_name])
        else:
            state[name] = learned.clone()
    return state


def _source_name(name: str, layers: Sequence[int]) -> str:
    if not name.startswith("model.layers."):
        return name
    _, _, index, rest = name.split(".", 3)
    return f"model.layers.{layers[int(index)]}.{rest}"


def _weight_for(name: str, source: Mapping[str, Tensor], layers: Sequence[int], like: Tensor) -> Tensor:
    source_name = _source_name(name, layers)
    if source_name in source:
        # A copy: a layer chosen twice becomes two layers.
        return source[source_name].clone()
    if name.endswith("_sub_norm.weight"):
        return torch.ones(like.shape)
    raise CoreError(
        f"student.init_from: the checkpoint has no {source_name}, which a Llama-shaped model has",
        'choose a Llama-shaped checkpoint, or start from scratch with init_from = ""',
    )
