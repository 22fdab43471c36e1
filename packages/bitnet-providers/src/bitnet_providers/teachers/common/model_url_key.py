"""Which model, at which address, with which key: settings first, then the variables that they name."""

import importlib.util
import os
from collections.abc import Iterable, Mapping
from typing import Protocol
from urllib.parse import urlsplit

import attrs

from bitnet_providers.contract import ProviderError

MODEL = "the model's name as the provider writes it (default: what the variable model_env holds)"


MODEL_ENV = "the environment variable that names the model where `model` is not set"


KEY_ENV = "the environment variable that holds the API key"


BASE_URL = "another address of the API, e.g. a gateway's (default: what the variable base_url_env holds, else its own)"


BASE_URL_ENV = "the environment variable that holds the address where `base_url` is not set"


TIMEOUT = "seconds that one answer may take"


class AccessOptions(Protocol):
    """What the options of every hosted teacher have."""

    @property
    def model(self) -> str: ...
    @property
    def model_env(self) -> str: ...
    @property
    def api_key_env(self) -> str: ...
    @property
    def base_url(self) -> str: ...
    @property
    def base_url_env(self) -> str: ...


@attrs.frozen
class Access:
    model: str
    base_url: str
    """Without a slash at its end."""
    api_key: str = attrs.field(repr=False)


def resolve(options: AccessOptions, default_url: str, environ: Mapping[str, str] | None = None) -> Access:
    """Model, address and key. Raises ProviderError for the first that is not there or can't be right."""
    environ = os.environ if environ is None else environ
    found = access_problems(options, default_url, environ)
    if found:
        raise ProviderError(f"teacher.{found[0].why}", found[0].fix)
    return Access(
        model=_value(options.model, options.model_env, environ),
        base_url=(_value(options.base_url, options.base_url_env, environ) or default_url).rstrip("/"),
        api_key=_value("", options.api_key_env, environ),
    )


def access_problems(
    options: AccessOptions, default_url: str, environ: Mapping[str, str] | None = None
) -> list[ProviderError]:
    """What is missing or can't be right, each with its fix and no value of a secret; asks nobody."""
    environ = os.environ if environ is None else environ
    problems = []
    if not _value(options.model, options.model_env, environ):
        fix = f'write model = "...", or put {options.model_env}=... in .env'
        problems.append(ProviderError("model: no model is named", fix))
    key = _value("", options.api_key_env, environ)
    if not key:
        problems.append(no_key(options.api_key_env))
    elif not key.isascii() or not key.isprintable() or " " in key:
        why = "holds no key (it has spaces or characters that no key has; it is not shown)"
        problems.append(
            ProviderError(f"api_key_env: the environment variable {options.api_key_env} {why}", "copy the key again")
        )
    where = "base_url" if options.base_url else f"base_url_env: {options.base_url_env}"
    problem = _url_problem(where, _value(options.base_url, options.base_url_env, environ) or default_url)
    return [*problems, problem] if problem else problems


def no_key(variable: str) -> ProviderError:
    """The key is not where the manifest says."""
    return ProviderError(
        f"api_key_env: the environment variable {variable} is not set", f"export {variable}=..., or put it in .env"
    )


def missing_modules(modules: Iterable[str], install: str) -> list[ProviderError]:
    """An error with the install command where one of the modules can't be found; nothing is imported but packages."""
    for module in modules:
        try:
            there = importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:  # of a parent package
            there = False
        if not there:
            return [ProviderError(f"kind: the Python module {module} is not installed", install)]
    return []


def _value(written: str, variable: str, environ: Mapping[str, str]) -> str:
    return (written or environ.get(variable, "")).strip()


def _url_problem(where: str, url: str) -> ProviderError | None:
    """Never repeats the address: it may hold a password."""
    no_address = ProviderError(f"{where}: this is no address", 'write "https://host/path"')
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return no_address
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return no_address
    if parts.username or parts.password or parts.query or parts.fragment:
        return ProviderError(
            f"{where}: an address here has no user, password or query",
            "put the key in the variable that api_key_env names",
        )
    return None
