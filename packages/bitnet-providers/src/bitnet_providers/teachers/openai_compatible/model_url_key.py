"""From a teacher's options to the server that is meant: URL, model and key out of the environment; no network."""

import ipaddress
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, cast
from urllib.parse import urlsplit

import attrs

from bitnet_providers.contract import Capabilities, ProviderError
from bitnet_providers.teachers.common.model_url_key import no_key
from bitnet_providers.teachers.openai_compatible.options import (
    AimlapiConfig,
    GroqConfig,
    OpenAICompatibleConfig,
    ServerOptions,
)
from bitnet_providers.teachers.openai_compatible.presets import AIMLAPI, GROQ, OPENAI, PRESETS, Preset, Scoring

NO_KEY = "none"
"""What is sent where a server of one's own needs no key: the SDK wants one."""

OWN_FIELDS = frozenset(
    ("model", "messages", "prompt", "temperature", "top_p", "max_tokens", "max_completion_tokens", "seed", "logprobs")
) | {"top_logprobs", "stream", "stream_options", "n", "reasoning_effort", "prompt_logprobs", "echo", "tools"}
"""Request fields that the manifest sets elsewhere, or that would change what an answer is."""
_SECRETS = ("apikey", "authorization", "accesstoken", "authtoken", "password", "secret")
"""Letters of fields that gateways take a key in."""


@attrs.frozen
class Server:
    """Everything that a client needs."""

    preset: Preset
    base_url: str
    model: str
    key: str = attrs.field(repr=False)
    """`NO_KEY` where none is needed."""
    options: ServerOptions

    @property
    def max_top_logprobs(self) -> int:
        own = self.options.max_top_logprobs
        return self.preset.max_top_logprobs if own is None else own

    @property
    def max_tokens_field(self) -> str:
        own = self.options.max_tokens_field
        return self.preset.max_tokens_field if own == "auto" else own

    @property
    def scoring(self) -> Scoring:
        own = self.options.scoring
        return self.preset.scoring if own == "auto" else cast(Scoring, own)

    @property
    def extra_body(self) -> Mapping[str, Any]:
        return {**self.preset.extra_body, **self.options.extra_body}


def preset_of(options: ServerOptions) -> Preset:
    if isinstance(options, OpenAICompatibleConfig):
        return PRESETS[options.preset]
    return GROQ if isinstance(options, GroqConfig) else AIMLAPI if isinstance(options, AimlapiConfig) else OPENAI


def server_of(options: ServerOptions) -> Server:
    """The server that the options mean. Raises ProviderError with everything that `problems` finds."""
    if found := problems(options):
        whys, fixes = (f"teacher.{each.why}" for each in found), (each.fix for each in found)
        raise ProviderError("; ".join(whys), "; ".join(fixes))
    preset = preset_of(options)
    return Server(preset, base_urls(options)[0], _model(options), _key(options) or NO_KEY, options)


def each_server(options: ServerOptions) -> list[ServerOptions]:
    """The options of each server of ``base_urls``, as if it stood alone; `options` itself where there are none."""
    return [attrs.evolve(options, base_url=url, base_urls=()) for url in options.base_urls] or [options]


def base_urls(options: ServerOptions) -> list[str]:
    """Of all servers, without a slash at the end; [""] where none is known."""
    one = options.base_url or _variable(options.base_url_env) or preset_of(options).base_url
    return [url.rstrip("/") for url in options.base_urls or (one,)]


def capabilities_of(options: ServerOptions) -> Capabilities:
    """What the server is said to give; `bitnet probe` finds out whether it does."""
    server = Server(preset_of(options), "", "", NO_KEY, options)
    most = server.max_top_logprobs
    return Capabilities(
        max_top_logprobs=most,
        token_ids=False,
        token_bytes=most > 0,
        scoring=server.scoring != "off" and most > 0,
        external=not all(map(is_this_machine, base_urls(options))),
        logprobs_before_temperature=None,
        seed=options.send_seed,
    )


def is_this_machine(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def problems(options: ServerOptions) -> list[ProviderError]:
    """What is missing or wrong, each with its fix; values of variables are never shown."""
    found = []
    preset = preset_of(options)
    if not _model(options):
        named = f", or set the environment variable {options.model_env}" if options.model_env else ""
        found.append(ProviderError("model: no model is named", f"write the name that the server knows{named}"))
    found += _url_problems(options)
    key_env = options.api_key_env or preset.api_key_env
    if (options.api_key_env or preset.needs_key) and not _variable(key_env):
        found.append(no_key(key_env))
    elif not _key(options).isascii() or any(letter.isspace() for letter in _key(options)):
        why = f"api_key_env: the value of {key_env} is no API key (a space or a letter with an accent in it)"
        found.append(ProviderError(why, "copy the key again"))
    found += [
        ProviderError(
            f"extra_body.{name}: this field is not set here",
            "take it out: it has an option of its own, or belongs to [collect]",
        )
        for name in sorted(OWN_FIELDS & options.extra_body.keys())
    ]
    found += [
        ProviderError(
            f"extra_body.{name}: a secret here would go into reports and shards",
            "take it out, and put it into the variable that api_key_env names",
        )
        for name in options.extra_body
        if re.sub(r"[\W_]", "", name.lower()) in _SECRETS
    ]
    return found


def _url_problems(options: ServerOptions) -> Iterator[ProviderError]:
    urls, like = base_urls(options), "write it like https://host/v1, without user, password and query"
    if options.base_url and options.base_urls:
        yield ProviderError(
            "base_urls: base_url is set as well", "write all servers into base_urls, and take base_url out"
        )
    for url in sorted({url for url in urls if urls.count(url) > 1}):
        yield ProviderError(f"base_urls: {url} stands there twice", "take one of them out")
    if not urls[0]:
        fix = 'write its URL (http://127.0.0.1:8000/v1), or a preset ("vllm")'
        yield ProviderError("base_url: no server is named", fix)
        return
    for url in dict.fromkeys(url for url in urls if not _is_url(url)):
        if options.base_urls:
            shown = url.rpartition("@")[2].partition("?")[0]
            yield ProviderError(f'base_urls: "{shown}" is not a URL of a server', like)
        else:
            origin = "base_url" if options.base_url else f"base_url_env: the value of {options.base_url_env}"
            yield ProviderError(f"{origin}: not a URL of a server", like)


def _key(options: ServerOptions) -> str:
    return _variable(options.api_key_env or preset_of(options).api_key_env)


def _model(options: ServerOptions) -> str:
    return options.model or _variable(options.model_env)


def _variable(name: str) -> str:
    return os.environ.get(name, "").strip() if name else ""


def _is_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        beside = parts.username is not None or parts.query or parts.fragment  # a key in it would go into reports
        _ = parts.port  # raises for what is no number
        return parts.scheme in ("http", "https") and bool(parts.hostname) and not beside
    except ValueError:
        return False
