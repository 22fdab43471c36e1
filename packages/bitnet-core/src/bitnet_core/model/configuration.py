"""The student's architecture as transformers stores it: Llama's, and what makes it ternary."""

from transformers import LlamaConfig


class BitNetKDEConfig(LlamaConfig):
    """Llama's fields and names (so that weights come and go), and the quantisers' settings."""

    model_type = "bitnet_kde"

    quantise_weights: bool = True
    """Ternary weights in the decoder layers; False gives plain linear layers (then, with 16 bits, this is Llama)."""
    activation_bits: int = 8
    """8, 4 (inputs of q, k, v, gate, up; o and down stay at 8) or 16 (off); follows `set_activation_bits`."""
    sublayer_norm: bool = False
    """An RMSNorm before o_proj (`attn_sub_norm`) and before down_proj (`ffn_sub_norm`)."""
    clip_weight_gradient: bool = False
    """No gradient to weights beyond their row's scale."""
    packed: bool = False
    """The ternary layers hold packed codes (two bits each) and row scales: an export, for inference only."""
