"""The student model. Importing this registers `bitnet_kde` with transformers' Auto classes."""

from transformers import AutoConfig, AutoModelForCausalLM

from bitnet_core.model.configuration import BitNetKDEConfig
from bitnet_core.model.init_from import build_student, init_from
from bitnet_core.model.modeling import BitNetKDEForCausalLM, BitNetKDEModel
from bitnet_core.ternary.bitlinear import dense_bytes, packed_bytes

__all__ = [
    "BitNetKDEConfig",
    "BitNetKDEForCausalLM",
    "BitNetKDEModel",
    "build_student",
    "dense_bytes",
    "init_from",
    "packed_bytes",
]

AutoConfig.register("bitnet_kde", BitNetKDEConfig, exist_ok=True)
AutoModelForCausalLM.register(BitNetKDEConfig, BitNetKDEForCausalLM, exist_ok=True)
