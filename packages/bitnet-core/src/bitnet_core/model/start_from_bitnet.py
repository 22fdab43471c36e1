"""A checkpoint in BitNet's ternary format (BitNet b1.58 2B4T, Falcon-E, our own `hf` export) as a student's start.

Shapes: O output rows, I input width, P = O / 4 rows of packed bytes.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig

from bitnet_core.config.student import StudentConfig
from bitnet_core.ternary.ternary_linear import ternary_codes
from bitnet_core.ternary.weight_quantisers import WEIGHT_QUANTISERS, WeightQuantiser
from bitnet_core.weight_format import BitNetFormat, weight_files

SMALLEST_MEAN = 1e-5
"""Below this, transformers' online quantiser doesn't take the mean magnitude."""


def read_bitnet(
    folder: Path, source: PreTrainedConfig, format_: BitNetFormat, config: StudentConfig
) -> dict[str, Tensor]:
    """The weights in `folder`, float32, as a student with `config` holds them: with its quantiser it computes with the
    very codes and scales of the checkpoint, where the quantiser can give them. Learned scales are under ``.log_scale``.

    Raises:
        ValueError: a tensor is missing, damaged, or of another shape than `source` says.
    """
    stored = {name: tensor for file in weight_files(folder) for name, tensor in load_file(file).items()}
    with torch.device("meta"):
        shapes = {
            name: like.shape
            for name, like in AutoModelForCausalLM.from_config(source, trust_remote_code=False).state_dict().items()
        }
    if source.tie_word_embeddings:
        stored.setdefault("lm_head.weight", stored.get("model.embed_tokens.weight", torch.empty(0)))
    state: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        if name not in stored:
            raise ValueError(f"{name} is missing")
        weight, scale = stored[name], stored.get(f"{name}_scale")
        if format_.online:
            is_ternary = name.endswith(("_proj.weight", "lm_head.weight")) and format_.converts(name[: -len(".weight")])
            weight, master = (_made_ternary(weight.float()), weight.float()) if is_ternary else (weight.float(), None)
        else:
            weight, master = _dequantised(name, weight, scale, shape[0], divides=format_.divides), None
        if weight.shape != shape:
            raise ValueError(f"{name} is {list(weight.shape)}, config.json says {list(shape)}")
        state[name] = weight
        turned = config.hadamard and name.endswith(("o_proj.weight", "down_proj.weight"))
        if not config.quantise_weights or turned or not name.endswith("_proj.weight"):
            continue
        scale_O = _row_scales(weight)
        if scale_O is not None:
            log_scale_name = name.removesuffix("weight") + "log_scale"
            state[name], state[log_scale_name] = _for_quantiser(
                weight, master, scale_O.log(), WEIGHT_QUANTISERS[config.weight_quantiser]
            )
    return state


def unpacked(packed_PI: Tensor, rows: int) -> Tensor:
    """The codes [`rows`, I], int8, of BitNet's packing: the lowest two bits of all bytes are the first P rows, the next
    two the next P rows, and so on; code + 1. Raises ValueError for bits that are no code."""
    digits = torch.cat([packed_PI.view(torch.uint8) >> shift & 3 for shift in (0, 2, 4, 6)])[:rows]
    if (digits == 3).any():
        raise ValueError("its packed bytes hold codes beyond -1, 0 and 1")
    return digits.to(torch.int8) - 1


def _dequantised(name: str, weight: Tensor, scale: Tensor | None, rows: int, *, divides: bool) -> Tensor:
    """What the layer multiplies with, float32. `scale` is one number for the tensor, or one for each row."""
    packed = not weight.is_floating_point()
    try:
        dense = (unpacked(weight, rows) if packed else weight).float()
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if scale is None:
        return dense
    scale = scale.float().flatten()
    if scale.numel() not in (1, rows):
        raise ValueError(f"{name}_scale has {scale.numel()} numbers, not one, nor one for each of {rows} rows")
    if not (torch.isfinite(scale).all() and (scale > 0).all()):
        raise ValueError(f"{name}_scale is not above 0, or not finite")
    scale_O1 = (1 / scale if divides else scale)[:, None]
    return dense * scale_O1


def _made_ternary(master_OI: Tensor) -> Tensor:
    """s * t as transformers' online layers compute it, in its order of operations."""
    inverse = 1.0 / master_OI.abs().mean().clamp(min=SMALLEST_MEAN)
    return (master_OI * inverse).round().clamp(-1, 1) / inverse


def _row_scales(weight_OI: Tensor) -> Tensor | None:
    """The magnitude [O] of each row's weights that aren't 0; a row of zeros gets the others' mean. None: a row has
    several, so the layer isn't ternary."""
    magnitude_OI = weight_OI.abs()
    scale_O = magnitude_OI.amax(1)
    if scale_O.max() == 0 or not ((magnitude_OI == 0) | (magnitude_OI == scale_O[:, None])).all():
        return None
    return torch.where(scale_O > 0, scale_O, scale_O[scale_O > 0].mean())


def _for_quantiser(
    weight_OI: Tensor, master_OI: Tensor | None, log_scale_O: Tensor, quantiser: WeightQuantiser
) -> tuple[Tensor, Tensor]:
    """A master weight [O, I] and log scales [O] that the quantiser takes for `weight_OI` = s * t."""
    if master_OI is not None and (quantiser.learned or _gives(quantiser, master_OI, log_scale_O)):
        # A weight on the border between two codes may round the other way: there, the code itself.
        same = ternary_codes(master_OI, log_scale_O) == weight_OI.sign()
        return torch.where(same, master_OI, weight_OI), log_scale_O
    if not quantiser.learned:
        # Its scale is the mean magnitude, zeros counted: stretched, s * t has the mean s.
        stretched = weight_OI * (log_scale_O - quantiser.log_scale_of(weight_OI)).exp()[:, None]
        if _gives(quantiser, stretched, log_scale_O):
            return stretched, log_scale_O
    return weight_OI, log_scale_O


def _gives(quantiser: WeightQuantiser, weight_OI: Tensor, log_scale_O: Tensor) -> bool:
    return torch.allclose(quantiser.log_scale_of(weight_OI), log_scale_O, rtol=0, atol=1e-5)
