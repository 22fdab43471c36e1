"""Tells bitnet that there is a teacher called ``talk``."""

import os
from collections.abc import Iterable
from urllib.parse import urlsplit

import attrs

from bitnet_providers.contract import Capabilities, ProviderError, Teacher, TeacherPlugin
from bitnet_providers.hookspecs import hookimpl
from bitnet_providers.settings import setting

CAPABILITIES = Capabilities(max_top_logprobs=10, token_ids=False, token_bytes=True, scoring=False, external=True)


@attrs.frozen(kw_only=True)
class TalkConfig:
    """``[teacher] kind = "talk"``"""

    base_url: str = setting(help="where the API is")
    model: str = setting("talk-1", help="the model's name")
    api_key_env: str = setting("TALK_API_KEY", help="the environment variable that holds the key")
    timeout_s: float = setting(600.0, help="seconds that one answer may take")


def capabilities_of(options: TalkConfig) -> Capabilities:
    """A server on this machine is not external."""
    here = urlsplit(options.base_url).hostname in ("127.0.0.1", "localhost", "::1")
    return attrs.evolve(CAPABILITIES, external=not here)


def _open(options: TalkConfig) -> Teacher:
    from bitnet_provider_talk.teacher import TalkTeacher

    return TalkTeacher(options, capabilities_of(options), os.environ.get(options.api_key_env, ""))


def _check(options: TalkConfig) -> list[ProviderError]:
    if os.environ.get(options.api_key_env):
        return []
    return [ProviderError(f"api_key_env: {options.api_key_env} is not set", "export it, or put it in .env")]


@hookimpl
def bitnet_teachers() -> Iterable[TeacherPlugin]:
    return [
        TeacherPlugin(
            name="talk",
            options=TalkConfig,
            capabilities=CAPABILITIES,
            capabilities_of=capabilities_of,
            open=_open,
            check=_check,
            requires=("aiohttp",),
            install="pip install aiohttp",
            summary="a made-up API with a wire format of its own",
        )
    ]
