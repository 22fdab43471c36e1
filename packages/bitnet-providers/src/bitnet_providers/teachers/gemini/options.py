"""``[teacher] kind = "gemini"`` and ``"gemini-legacy"``: their options, and what the API can do."""

import attrs
from attrs.validators import ge, gt, optional

from bitnet_providers.contract import Capabilities
from bitnet_providers.settings import setting
from bitnet_providers.teachers.common.model_url_key import BASE_URL, BASE_URL_ENV, KEY_ENV, MODEL, MODEL_ENV, TIMEOUT


@attrs.frozen(kw_only=True)
class GeminiTeacherConfig:
    """``[teacher] kind = "gemini"``: Google's models, with log-probabilities where the model gives them."""

    model: str = setting("", help=MODEL)
    model_env: str = setting("GEMINI_MODEL", help=MODEL_ENV)
    api_key_env: str = setting("GEMINI_API_KEY", help=KEY_ENV)
    base_url: str = setting("", help=BASE_URL)
    base_url_env: str = setting("GEMINI_BASE_URL", help=BASE_URL_ENV)
    thinking_budget: int | None = setting(
        None,
        validator=optional(ge(0)),
        help="tokens that the model may think before it answers; 0: none (default: as the model does by itself)",
    )
    timeout_s: float = setting(600.0, validator=gt(0.0), help=TIMEOUT)


@attrs.frozen(kw_only=True)
class GeminiLegacyTeacherConfig:
    """``[teacher] kind = "gemini-legacy"``: the same API through google-generativeai, which was retired in 2025."""

    model: str = setting("", help=MODEL)
    model_env: str = setting("GEMINI_MODEL", help=MODEL_ENV)
    api_key_env: str = setting("GEMINI_API_KEY", help=KEY_ENV)
    base_url: str = setting("", help=BASE_URL)
    base_url_env: str = setting("GEMINI_BASE_URL", help=BASE_URL_ENV)
    timeout_s: float = setting(600.0, validator=gt(0.0), help=TIMEOUT)


GEMINI_URL = "https://generativelanguage.googleapis.com"


GEMINI_CAPABILITIES = Capabilities(
    max_top_logprobs=20,  # where the model gives any
    token_ids=False,  # it tells ids, of a vocabulary that nobody can download
    token_bytes=True,
    scoring=False,
    external=True,
    logprobs_before_temperature=None,
)


GEMINI_LEGACY_CAPABILITIES = attrs.evolve(GEMINI_CAPABILITIES, seed=False)
