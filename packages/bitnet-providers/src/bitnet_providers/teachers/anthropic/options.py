"""``[teacher] kind = "anthropic"``: its options, and what the API can do."""

import attrs
from attrs.validators import gt, in_

from bitnet_providers.contract import Capabilities
from bitnet_providers.settings import setting
from bitnet_providers.teachers.common.model_url_key import BASE_URL, BASE_URL_ENV, KEY_ENV, MODEL, MODEL_ENV, TIMEOUT

ANTHROPIC_URL = "https://api.anthropic.com"


ANTHROPIC_CAPABILITIES = Capabilities(
    max_top_logprobs=0,
    token_ids=False,
    token_bytes=False,
    scoring=False,
    external=True,
    logprobs_before_temperature=None,
    seed=False,
)


@attrs.frozen(kw_only=True)
class AnthropicTeacherConfig:
    """``[teacher] kind = "anthropic"``: Claude, text only: it tells no log-probabilities."""

    model: str = setting("", help=MODEL)
    model_env: str = setting("ANTHROPIC_MODEL", help=MODEL_ENV)
    api_key_env: str = setting("ANTHROPIC_API_KEY", help=KEY_ENV)
    base_url: str = setting("", help=BASE_URL)
    base_url_env: str = setting("ANTHROPIC_BASE_URL", help=BASE_URL_ENV)
    thinking: str = setting(
        "auto",
        validator=in_(("auto", "off")),
        help='"auto": as the model does by itself; "off": asked not to think before it answers',
    )
    timeout_s: float = setting(600.0, validator=gt(0.0), help=TIMEOUT)
