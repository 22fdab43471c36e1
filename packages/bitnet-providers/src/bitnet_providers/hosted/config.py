"""``[teacher]`` for the hosted APIs that don't speak OpenAI's protocol. Keys are named here, never written."""

import attrs
from attrs.validators import ge, gt, in_, optional

from bitnet_providers.settings import setting

_MODEL = "the model's name as the provider writes it (default: what the variable model_env holds)"
_MODEL_ENV = "the environment variable that names the model where `model` is not set"
_KEY_ENV = "the environment variable that holds the API key"
_BASE_URL = "another address of the API, e.g. a gateway's (default: what the variable base_url_env holds, else its own)"
_BASE_URL_ENV = "the environment variable that holds the address where `base_url` is not set"
_TIMEOUT = "seconds that one answer may take"


@attrs.frozen(kw_only=True)
class AnthropicTeacherConfig:
    """``[teacher] kind = "anthropic"``: Claude, text only: it tells no log-probabilities."""

    model: str = setting("", help=_MODEL)
    model_env: str = setting("ANTHROPIC_MODEL", help=_MODEL_ENV)
    api_key_env: str = setting("ANTHROPIC_API_KEY", help=_KEY_ENV)
    base_url: str = setting("", help=_BASE_URL)
    base_url_env: str = setting("ANTHROPIC_BASE_URL", help=_BASE_URL_ENV)
    thinking: str = setting(
        "auto",
        validator=in_(("auto", "off")),
        help='"auto": as the model does by itself; "off": asked not to think before it answers',
    )
    timeout_s: float = setting(600.0, validator=gt(0.0), help=_TIMEOUT)


@attrs.frozen(kw_only=True)
class GeminiTeacherConfig:
    """``[teacher] kind = "gemini"``: Google's models, with log-probabilities where the model gives them."""

    model: str = setting("", help=_MODEL)
    model_env: str = setting("GEMINI_MODEL", help=_MODEL_ENV)
    api_key_env: str = setting("GEMINI_API_KEY", help=_KEY_ENV)
    base_url: str = setting("", help=_BASE_URL)
    base_url_env: str = setting("GEMINI_BASE_URL", help=_BASE_URL_ENV)
    thinking_budget: int | None = setting(
        None,
        validator=optional(ge(0)),
        help="tokens that the model may think before it answers; 0: none (default: as the model does by itself)",
    )
    timeout_s: float = setting(600.0, validator=gt(0.0), help=_TIMEOUT)


@attrs.frozen(kw_only=True)
class GeminiLegacyTeacherConfig:
    """``[teacher] kind = "gemini-legacy"``: the same API through google-generativeai, which was retired in 2025."""

    model: str = setting("", help=_MODEL)
    model_env: str = setting("GEMINI_MODEL", help=_MODEL_ENV)
    api_key_env: str = setting("GEMINI_API_KEY", help=_KEY_ENV)
    base_url: str = setting("", help=_BASE_URL)
    base_url_env: str = setting("GEMINI_BASE_URL", help=_BASE_URL_ENV)
    timeout_s: float = setting(600.0, validator=gt(0.0), help=_TIMEOUT)
