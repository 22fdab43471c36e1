"""The options of the OpenAI-shaped teachers: kinds "openai", "aimlapi", "groq" and "openai-compatible"."""

from typing import Any

import attrs
from attrs.validators import and_, ge, gt, in_, le, optional

from bitnet_providers.config import MAX_LOCAL_CANDIDATES
from bitnet_providers.settings import setting
from bitnet_providers.teachers.openai_compatible.presets import PRESETS


@attrs.frozen(kw_only=True)
class ServerOptions:
    """What all of them have in common. A key is only ever named, never written here."""

    model: str = setting("", help="the model's name as the server knows it")
    model_env: str = setting("", help="environment variable with the model's name, where `model` is not set")
    base_url: str = setting("", help="where the API is, e.g. http://127.0.0.1:8000/v1 (default: the provider's own)")
    base_urls: tuple[str, ...] = setting(
        (),
        later=True,
        converter=lambda urls: tuple(sorted(urls)),  # their order is no setting
        help="several servers of this model in place of `base_url`: each is asked at its own pace",
    )
    base_url_env: str = setting("", help="environment variable with the base URL, where `base_url` is not set")
    api_key_env: str = setting("", help="environment variable with the API key (default: the provider's usual one)")
    max_top_logprobs: int | None = setting(
        None,
        validator=optional(and_(ge(0), le(MAX_LOCAL_CANDIDATES))),
        help="candidates that the model gives at most; 0: never ask it for log-probabilities (default: the provider's)",
    )
    max_tokens_field: str = setting(
        "auto",
        validator=in_(("auto", "max_tokens", "max_completion_tokens")),
        help='what the API calls the limit: "auto", "max_tokens" or "max_completion_tokens"',
    )
    reasoning: str = setting(
        "drop",
        validator=in_(("drop", "keep")),
        help='what a model thinks before its answer: "drop" (the answer is the text) or "keep" (part of the text)',
    )
    reasoning_effort: str = setting("", help='sent along where set; newest OpenAI models give logprobs only at "none"')
    end_of_turn: str = setting(
        "", help='what the model calls the end of a turn, e.g. "<|im_end|>", for servers that leave it in the text'
    )
    send_seed: bool = setting(True, help="false for an API that refuses `seed`")
    stream: bool = setting(
        False, help="true: answers come piece by piece (a server may give logprobs in one mode only)"
    )
    scoring: str = setting(
        "auto",
        validator=in_(("auto", "off", "prompt_logprobs", "echo")),
        help='how text is scored: "prompt_logprobs" (vLLM), "echo" (legacy completions), "off"; "auto": as the preset',
    )
    extra_body: dict[str, Any] = attrs.field(
        factory=dict, metadata={"help": "more fields for each request, e.g. { top_k = 0 }", "path": False}
    )
    timeout_s: float = setting(600.0, validator=gt(0.0), help="seconds without a byte of the answer before giving up")
    connect_timeout_s: float = setting(10.0, validator=gt(0.0), help="seconds to reach the server")


@attrs.frozen(kw_only=True)
class OpenAIConfig(ServerOptions):
    """``kind = "openai"``"""

    model_env: str = setting(
        "OPENAI_MODEL", help="environment variable with the model's name, where `model` is not set"
    )
    base_url_env: str = setting("OPENAI_BASE_URL", help="environment variable with another base URL, if it is set")
    api_key_env: str = setting("OPENAI_API_KEY", help="environment variable with the API key")


@attrs.frozen(kw_only=True)
class AimlapiConfig(ServerOptions):
    """``kind = "aimlapi"``"""

    model_env: str = setting(
        "AIMLAPI_MODEL", help="environment variable with the model's name, where `model` is not set"
    )
    base_url_env: str = setting("AIMLAPI_BASE_URL", help="environment variable with another base URL, if it is set")
    api_key_env: str = setting("AIMLAPI_API_KEY", help="environment variable with the API key")


@attrs.frozen(kw_only=True)
class GroqConfig(ServerOptions):
    """``kind = "groq"``: no log-probabilities, so sequence-level traces only."""

    model_env: str = setting("GROQ_MODEL", help="environment variable with the model's name, where `model` is not set")
    base_url_env: str = setting("GROQ_BASE_URL", help="environment variable with another base URL, if it is set")
    api_key_env: str = setting("GROQ_API_KEY", help="environment variable with the API key")


@attrs.frozen(kw_only=True)
class OpenAICompatibleConfig(ServerOptions):
    """``kind = "openai-compatible"``: a server of one's own, or any other service of this shape."""

    preset: str = setting(
        "",
        validator=in_(tuple(PRESETS)),
        help="where it listens and what it can: " + ", ".join(f'"{name}"' for name in PRESETS if name),
    )
