"""The manifest's ``[dry_run]`` table. Importing this loads no torch."""

from typing import Any

import attrs

from bitnet_core.config.student import StudentConfig
from bitnet_core.settings import setting

_positive: Any = attrs.validators.gt(0)


@attrs.frozen(kw_only=True)
class DryRunConfig:
    """A student whose memory is predicted, and measured where it fits. Left as it is: Llama 2's 7B."""

    vocab_size: int = setting(32000, help="tokens of the vocabulary", validator=_positive)
    hidden_size: int = setting(4096, help="width of the residual stream", validator=_positive)
    intermediate_size: int = setting(11008, help="width of the SwiGLU", validator=_positive)
    num_hidden_layers: int = setting(32, help="decoder layers", validator=_positive)
    num_attention_heads: int = setting(32, help="query heads", validator=_positive)
    num_key_value_heads: int = setting(32, help="key/value heads; divides num_attention_heads", validator=_positive)
    tie_word_embeddings: bool = setting(False, help="the head is the embedding's transpose")
    batch_size: int = setting(1, help="sequences", validator=_positive)
    context: int = setting(2048, help="positions of a sequence, and of the cache", validator=attrs.validators.gt(2))
    top_k: int = setting(20, help="the teacher's candidates at each position", validator=_positive)
    chunk_tokens: int = setting(256, help="positions whose logits exist at a time, as in [loss]", validator=_positive)
    gradient_checkpointing: bool = setting(True, help="compute activations again in the backward pass")
    optimizer: str = setting(
        "adamw", help="adamw, or adamw8bit (8-bit moments)", validator=attrs.validators.in_(("adamw", "adamw8bit"))
    )
    precision: str = setting(
        "bf16",
        help="autocast: fp32, bf16, or auto (as in [train])",
        validator=attrs.validators.in_(("auto", "fp32", "bf16")),
    )
    attention: str = setting(
        "sdpa",
        help="sdpa (fused kernels), or eager (attention matrices in memory)",
        validator=attrs.validators.in_(("sdpa", "eager")),
    )
    devices: int = setting(
        1,
        help="GPUs that share parameters, gradients and moments (FSDP); batch_size is each one's",
        validator=_positive,
    )
    measure: str = setting(
        "auto",
        help="run the phases for real: auto (where the model fits), always (an error where it does not), never",
        validator=attrs.validators.in_(("auto", "always", "never")),
    )

    def __attrs_post_init__(self) -> None:
        self.student()  # its own checks of the sizes
        if self.top_k >= self.vocab_size:
            raise ValueError(f"top_k = {self.top_k} must be below vocab_size = {self.vocab_size}")
        if self.devices > 1 and self.optimizer == "adamw8bit":
            raise ValueError('optimizer = "adamw8bit" runs on one device: set devices = 1, or optimizer = "adamw"')
        if self.devices > 1 and self.measure == "always":
            raise ValueError('measure = "always" runs on one device: set devices = 1, or measure = "auto"')

    def student(self) -> StudentConfig:
        """The same student as [student] would have it, from scratch."""
        return StudentConfig(
            init_from="",
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            max_position_embeddings=self.context,
            tie_word_embeddings=self.tie_word_embeddings,
        )
