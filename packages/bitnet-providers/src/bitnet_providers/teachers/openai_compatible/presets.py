"""What is known of each service and server: where it listens, which key it takes, where it departs from OpenAI."""

from collections.abc import Mapping
from typing import Any, Literal

import attrs

Scoring = Literal["off", "prompt_logprobs", "echo"]

ANY_TOKEN = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
"""Sampling from the whole distribution: a model's own generation_config must not narrow it unseen (vLLM, SGLang)."""


@attrs.frozen(kw_only=True)
class Preset:
    """Defaults for one service; every one can be overruled in the manifest where an option has its name."""

    base_url: str = ""
    """Empty: the manifest must give it."""
    api_key_env: str = ""
    """The variable with the key."""
    needs_key: bool = True
    """False: a server of one's own, which may run without a key."""
    max_top_logprobs: int = 20
    logprobs_as_count: bool = False
    """``logprobs`` is the number of candidates (Together), not true or false beside ``top_logprobs``."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    sends_sampling_defaults: bool = True
    """Temperature 1 and top-p 1 are sent too: a server of one's own may have other defaults."""
    takes_stream_options: bool = True
    """Usage is asked for in streams; Groq's SDK lacks the field, and gives it unasked."""
    scoring: Scoring = "off"
    """How given text is scored; each answer is checked against the text."""
    extra_body: Mapping[str, Any] = attrs.field(factory=dict)
    """Request fields that OpenAI doesn't have."""


OPENAI = Preset(
    base_url="https://api.openai.com/v1",
    api_key_env="OPENAI_API_KEY",
    max_tokens_field="max_completion_tokens",
    sends_sampling_defaults=False,  # reasoning models refuse them, even at their only value
)
AIMLAPI = Preset(base_url="https://api.aimlapi.com/v1", api_key_env="AIMLAPI_API_KEY")
GROQ = Preset(
    base_url="https://api.groq.com",  # the SDK adds /openai/v1
    api_key_env="GROQ_API_KEY",
    max_top_logprobs=0,  # the API answers 400 to logprobs
    max_tokens_field="max_completion_tokens",
    takes_stream_options=False,
)

PRESETS: Mapping[str, Preset] = {
    "": Preset(needs_key=False),
    "vllm": Preset(
        base_url="http://127.0.0.1:8000/v1",
        api_key_env="VLLM_API_KEY",
        needs_key=False,
        scoring="prompt_logprobs",
        extra_body=ANY_TOKEN,
    ),
    "sglang": Preset(
        base_url="http://127.0.0.1:30000/v1",
        api_key_env="SGLANG_API_KEY",
        needs_key=False,
        scoring="echo",
        extra_body=ANY_TOKEN,
    ),
    "llamacpp": Preset(
        base_url="http://127.0.0.1:8080/v1",
        api_key_env="LLAMA_API_KEY",
        needs_key=False,
        max_top_logprobs=100,
        extra_body={"top_k": 0, "min_p": 0.0, "typical_p": 1.0, "repeat_penalty": 1.0},
    ),
    "ollama": Preset(base_url="http://127.0.0.1:11434/v1", api_key_env="OLLAMA_API_KEY", needs_key=False),
    "together": Preset(base_url="https://api.together.xyz/v1", api_key_env="TOGETHER_API_KEY", logprobs_as_count=True),
    "fireworks": Preset(
        base_url="https://api.fireworks.ai/inference/v1",
        api_key_env="FIREWORKS_API_KEY",
        max_top_logprobs=5,
        scoring="echo",
    ),
    "deepseek": Preset(base_url="https://api.deepseek.com/v1", api_key_env="DEEPSEEK_API_KEY"),
    "openrouter": Preset(
        base_url="https://openrouter.ai/api/v1",
        api_key_env="OPENROUTER_API_KEY",
        # Without it the request may go to a host that drops log-probabilities silently.
        extra_body={"provider": {"require_parameters": True}},
    ),
}
"""``teacher.preset`` of kind "openai-compatible"; "" is a server that nothing is known of."""
