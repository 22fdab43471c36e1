"""The student model. Importing this has transformers' Auto classes open `bitnet_kde`, and what `ternarise` has made."""

from transformers import AutoConfig, AutoModelForCausalLM

from bitnet_core.model.configuration import BitNetKDEConfig
from bitnet_core.model.init_from import build_student, init_from
from bitnet_core.model.modeling import BitNetKDEForCausalLM, BitNetKDEModel
from bitnet_core.model.ternarise import Ternarised, restore_dense, ternarise
from bitnet_core.ternary.model_bytes import dense_bytes, packed_bytes

__all__ = [
    "BitNetKDEConfig",
    "BitNetKDEForCausalLM",
    "BitNetKDEModel",
    "Ternarised",
    "build_student",
    "dense_bytes",
    "init_from",
    "packed_bytes",
    "restore_dense",
    "ternarise",
]

AutoConfig.register("bitnet_kde", BitNetKDEConfig, exist_ok=True)
AutoModelForCausalLM.register(BitNetKDEConfig, BitNetKDEForCausalLM, exist_ok=True)
