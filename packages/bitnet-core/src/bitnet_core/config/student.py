"""The manifest's ``[student]`` table."""

from collections.abc import Mapping
from typing import Any

import attrs

from bitnet_core.settings import setting

FROM_TEACHER = "teacher"
"""`StudentConfig.init_from`: start from the teacher's own weights."""

LLAMA, TEACHERS = "llama", "teacher's"
"""`StudentConfig.architecture`: the student that is written here, and the start's own, whatever it is."""


WEIGHT_QUANTISER_NAMES = ("lsq", "lsq_clip", "absmean_tensor", "absmean_row", "seq")
"""Those of `bitnet_core.ternary.weight_quantisers`, which loads torch."""

LEARNED_SCALES = ("lsq", "lsq_clip", "seq")
"""The weight quantisers whose row scales are parameters, so that a start can set them."""

CALIBRATED, LEAST_SQUARES = "calibrated", "least_squares"
"""`StudentConfig.start`: codes and scales fitted to what the layers put out, or to their weights alone."""

_positive = attrs.validators.gt(0)


@attrs.frozen(kw_only=True)
class StudentConfig:
    """A ternary student: either started from a checkpoint's layers, or from scratch with the sizes given here."""

    init_from: str = setting(
        FROM_TEACHER,
        path=True,
        hub=True,
        help='where the weights start: "teacher", the folder or the name on the Hugging Face Hub (ORG/NAME@REVISION) '
        'of a Llama, Mistral or Qwen checkpoint, or "" for chance',
    )
    architecture: str = setting(
        LLAMA,
        later=True,
        help='llama: the student that is written here, for every runtime and export; "teacher\'s": that of init_from, '
        "as transformers computes it; or its model_type by name (docs/other-architectures.md)",
    )
    leave_out: tuple[str, ...] = setting(
        (),
        later=True,
        help='another architecture only: linear layers that stay in full precision, by patterns ("*.o_proj")',
    )
    layers: tuple[int, ...] = setting(
        (), help="which layers of init_from to keep, in this order, counted from 0; empty keeps all"
    )
    start: str | None = setting(
        None,
        help="how a full-precision checkpoint becomes ternary: calibrated (fitted to the layers' outputs on training "
        "text, the stage calibrate) or least_squares (fitted to the weights); left out, calibrated where that can be: "
        "all layers, weight_quantiser lsq, and run.stages names calibrate",
        validator=attrs.validators.optional(attrs.validators.in_((CALIBRATED, LEAST_SQUARES))),
    )
    hidden_size: int = setting(512, help="from scratch only: width of the residual stream", validator=_positive)
    intermediate_size: int = setting(1536, help="from scratch only: width of the SwiGLU", validator=_positive)
    num_hidden_layers: int = setting(6, help="from scratch only: decoder layers", validator=_positive)
    num_attention_heads: int = setting(8, help="from scratch only: query heads", validator=_positive)
    num_key_value_heads: int = setting(
        4, help="from scratch only: key/value heads; divides num_attention_heads", validator=_positive
    )
    head_dim: int | None = setting(
        None, help="from scratch only: width of a head; left out, hidden_size / num_attention_heads"
    )
    max_position_embeddings: int = setting(2048, help="from scratch only: longest context, tokens", validator=_positive)
    rope_theta: float = setting(10000.0, help="from scratch only: base of the rotary frequencies", validator=_positive)
    tie_word_embeddings: bool = setting(True, help="from scratch only: the head is the embedding's transpose")
    qkv_bias: bool = setting(False, help="from scratch only: biases on q, k and v, as in Qwen2")
    qk_norm: bool = setting(False, help="from scratch only: an RMSNorm on each query and key head, as in Qwen3")
    sublayer_norm: bool = setting(False, help="an RMSNorm before o_proj and before down_proj (SubLN)")
    freeze_embeddings: bool = setting(False, help="keep the embedding and the head as they start")
    quantise_weights: bool = setting(True, help="ternary weights; false gives the full-precision control")
    weight_quantiser: str = setting(
        "lsq",
        validator=attrs.validators.in_(WEIGHT_QUANTISER_NAMES),
        help="how weights become ternary: lsq (a learned scale a row), lsq_clip (no gradient beyond the scale), "
        "absmean_tensor (BitNet b1.58), absmean_row, or seq (ParetoQ)",
    )
    hadamard: bool = setting(
        False, help="rotate the inputs of o_proj and down_proj (Hadamard), which then go down to 4 bits too"
    )
    activation_bits: int = setting(
        8, help="bits of the activations until they flip to 4 (train.flip_fraction): 8, 4 (from the start), or 16 (off)"
    )

    def __attrs_post_init__(self) -> None:
        problems = _problems_of_layers(self) if self.init_from else _problems_of_sizes(self)
        problems += _problems_of_architecture(self)
        obstacle = calibration_obstacle(self) if self.start == CALIBRATED else None
        if obstacle is not None:
            problems.append(f'start = "{CALIBRATED}" is not for this student: {obstacle}; set "{LEAST_SQUARES}"')
        if self.activation_bits not in (16, 8, 4):
            problems.append(f"activation_bits = {self.activation_bits} must be 16 (off), 8 or 4")
        if problems:
            raise ValueError("; ".join(problems))


def _problems_of_layers(config: StudentConfig) -> list[str]:
    negative = [index for index in config.layers if index < 0]
    return [f"layers counts from 0; {negative[0]} is below it"] if negative else []


def without_effect(config: StudentConfig) -> list[str]:
    """What is set and changes nothing, as a line; empty where nothing is."""
    unread = [
        f"student.{field.name} = {value}"
        for field in attrs.fields(StudentConfig)
        if field.metadata["help"].startswith("from scratch only")
        and (value := getattr(config, field.name)) != field.default
    ]
    if not config.init_from or not unread:
        return []
    return [
        f"{', '.join(unread)}: without effect, since student.init_from says what the student is like (student.layers = "
        '[0, 1, ...] keeps some of its layers, init_from = "" starts from scratch)'
    ]


def _problems_of_architecture(config: StudentConfig) -> list[str]:
    """What only the student that is written here has."""
    if config.architecture == LLAMA:
        return ["leave_out is for another architecture"] if config.leave_out else []
    switched = ("layers", "sublayer_norm", "hadamard", "qkv_bias", "qk_norm")
    problems = [f"{name} is for the architecture {LLAMA}" for name in switched if getattr(config, name)]
    if not config.init_from:
        problems.append(f"architecture = {config.architecture!r} starts from a checkpoint: set init_from")
    if not config.quantise_weights:
        problems.append(f"quantise_weights = false is for the architecture {LLAMA}")
    return problems


def _problems_of_sizes(config: StudentConfig) -> list[str]:
    problems = []
    if config.layers:
        problems.append('layers chooses from init_from, which is "": set init_from, or layers = []')
    return problems + problems_of_heads(attrs.asdict(config))


def problems_of_heads(sizes: Mapping[str, Any]) -> list[str]:
    """Why attention can't be built of these sizes, which have the names of transformers' ``config.json``.

    Sizes that aren't given, or aren't integers, are nobody's problem here.
    """
    names = ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    hidden, heads, kv_heads, head_dim = (value if isinstance(value := sizes.get(name), int) else None for name in names)
    if hidden is None or heads is None or heads < 1:
        return []
    problems = []
    if hidden % heads:
        problems.append(f"hidden_size = {hidden} is not a multiple of num_attention_heads = {heads}")
    if kv_heads and heads % kv_heads:
        problems.append(f"num_attention_heads = {heads} is not a multiple of num_key_value_heads = {kv_heads}")
    if head_dim is not None and (head_dim <= 0 or head_dim % 2):
        problems.append(f"head_dim = {head_dim} must be even and above 0 (rotary embeddings turn pairs)")
    elif head_dim is None and not hidden % heads and (hidden // heads) % 2:
        problems.append(f"hidden_size / num_attention_heads = {hidden // heads} must be even (rotary pairs)")
    return problems


def calibration_obstacle(config: StudentConfig) -> str | None:
    """What in the settings keeps the start from being calibrated; None: nothing does."""
    if not config.init_from:
        return 'init_from = "" starts from random weights'
    if not config.quantise_weights:
        return "quantise_weights = false has no codes to choose"
    if config.weight_quantiser not in LEARNED_SCALES:
        return f'weight_quantiser = "{config.weight_quantiser}" computes its scales from the weights'
    if config.layers:
        return "layers keeps some of init_from's layers, and a calibrated start corrects towards what all of them do"
    return None
