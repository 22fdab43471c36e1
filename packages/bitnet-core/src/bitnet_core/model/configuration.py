"""The student's architecture as transformers stores it: Llama's, its cousins' switches, and what makes it ternary."""

from transformers import LlamaConfig


class BitNetKDEConfig(LlamaConfig):
    """Llama's fields and names (so that weights come and go), and the quantisers' settings."""

    model_type = "bitnet_kde"

    qkv_bias: bool = False
    """Biases on q, k and v only (Qwen2); `attention_bias` has them on o too."""
    qk_norm: bool = False
    """An RMSNorm over each head of the queries and of the keys, before rotation (Qwen3)."""
    quantise_weights: bool = True
    """Ternary weights in the decoder layers; False gives plain linear layers (then, with 16 bits, this is Llama)."""
    activation_bits: int = 8
    """8, 4 (inputs of q, k, v, gate, up; o and down stay at 8) or 16 (off); follows `set_activation_bits`."""
    sublayer_norm: bool = False
    """An RMSNorm before o_proj (`attn_sub_norm`) and before down_proj (`ffn_sub_norm`)."""
    weight_quantiser: str = "lsq"
    """How weights become ternary: a name in `bitnet_core.ternary.weight_quantisers.WEIGHT_QUANTISERS`."""
    hadamard: bool = False
    """The inputs of o and down are rotated by a Hadamard transform, and go down to 4 bits with the others."""
    packed: bool = False
    """The ternary layers hold packed codes (two bits each) and row scales: an export, for inference only."""
    packed_tables: bool = False
    """So do embedding and head (8 bits a weight); exports before these have float16 there."""
