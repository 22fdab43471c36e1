"""What bitnet-providers brings to the plugin system. No SDK is imported before a teacher of its kind is opened."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from bitnet_providers.contract import Capabilities, ProviderError, TeacherPlugin
from bitnet_providers.hookspecs import hookimpl
from bitnet_providers.lazy import lazily
from bitnet_providers.teachers.anthropic.options import ANTHROPIC_CAPABILITIES, ANTHROPIC_URL, AnthropicTeacherConfig
from bitnet_providers.teachers.common.model_url_key import access_problems, missing_modules
from bitnet_providers.teachers.gemini.options import (
    GEMINI_CAPABILITIES,
    GEMINI_LEGACY_CAPABILITIES,
    GEMINI_URL,
    GeminiLegacyTeacherConfig,
    GeminiTeacherConfig,
)
from bitnet_providers.teachers.local.options import LOCAL_CAPABILITIES, LocalTeacherConfig
from bitnet_providers.teachers.openai_compatible.model_url_key import capabilities_of, problems
from bitnet_providers.teachers.openai_compatible.options import (
    AimlapiConfig,
    GroqConfig,
    OpenAICompatibleConfig,
    OpenAIConfig,
)

ANTHROPIC_MODULES = ("anthropic",)


GEMINI_MODULES = ("google.genai", "httpx2")


GEMINI_LEGACY_MODULES = ("google.generativeai",)


def _install(extra: str) -> str:
    return f"pip install 'bitnet-providers[{extra}]'"


def _problems(modules: tuple[str, ...], extra: str, url: str, options: Any) -> list[ProviderError]:
    return missing_modules(modules, _install(extra)) + access_problems(options, url)


HOSTED_TEACHERS = (
    TeacherPlugin(
        name="anthropic",
        options=AnthropicTeacherConfig,
        capabilities=ANTHROPIC_CAPABILITIES,
        open=lazily("bitnet_providers.teachers.anthropic.teacher:open_anthropic"),
        summary="Claude; text only, no log-probabilities: a student learns from the sampled tokens",
        requires=ANTHROPIC_MODULES,
        install=_install("anthropic"),
        check=partial(_problems, ANTHROPIC_MODULES, "anthropic", ANTHROPIC_URL),
    ),
    TeacherPlugin(
        name="gemini",
        options=GeminiTeacherConfig,
        capabilities=GEMINI_CAPABILITIES,
        open=lazily("bitnet_providers.teachers.gemini.teacher:open_gemini"),
        summary="Google's models through google-genai; top log-probabilities where the model gives them",
        requires=GEMINI_MODULES,
        install=_install("gemini"),
        check=partial(_problems, GEMINI_MODULES, "gemini", GEMINI_URL),
    ),
    TeacherPlugin(
        name="gemini-legacy",
        options=GeminiLegacyTeacherConfig,
        capabilities=GEMINI_LEGACY_CAPABILITIES,
        open=lazily("bitnet_providers.teachers.gemini.legacy_teacher:open_gemini_legacy"),
        summary='deprecated: google-generativeai, retired by Google in 2025; use "gemini"',
        requires=GEMINI_LEGACY_MODULES,
        install=_install("gemini-legacy"),
        check=partial(_problems, GEMINI_LEGACY_MODULES, "gemini-legacy", GEMINI_URL),
    ),
)


_SAID = Capabilities(
    max_top_logprobs=20,
    token_ids=False,
    token_bytes=True,
    scoring=False,
    external=True,
    logprobs_before_temperature=None,
)


_through_openai = partial(
    TeacherPlugin,
    capabilities=_SAID,
    open=lazily("bitnet_providers.teachers.openai_compatible.teacher:open_with_openai"),
    requires=("openai", "aiohttp"),
    install="pip install 'bitnet-providers[openai]'",
    check=problems,
    capabilities_of=capabilities_of,
)


PLUGINS = (
    _through_openai(name="openai", options=OpenAIConfig, summary="OpenAI's chat completions"),
    _through_openai(
        name="aimlapi",
        options=AimlapiConfig,
        summary="AIMLAPI: many models behind one key; log-probabilities depend on the model",
    ),
    _through_openai(
        name="openai-compatible",
        options=OpenAICompatibleConfig,
        summary="vLLM, SGLang, llama.cpp, Ollama, Together, Fireworks, DeepSeek, OpenRouter, or any server by its URL",
    ),
    TeacherPlugin(
        name="groq",
        options=GroqConfig,
        capabilities=capabilities_of(GroqConfig(model="any")),
        summary="Groq: fast, without log-probabilities (sequence-level traces)",
        open=lazily("bitnet_providers.teachers.openai_compatible.teacher:open_with_groq"),
        requires=("groq",),
        install="pip install 'bitnet-providers[groq]'",
        check=problems,
        capabilities_of=capabilities_of,
    ),
)


def _model_folder(options: LocalTeacherConfig) -> Path:
    from bitnet_providers.teachers.local.model_source import model_folder

    return model_folder(options.model)


def _capabilities_of_local(options: LocalTeacherConfig) -> Capabilities:
    from bitnet_providers.teachers.local.chat_template import lacks_template

    return attrs.evolve(LOCAL_CAPABILITIES, chat=not lacks_template(options))


def _check_local(options: LocalTeacherConfig) -> list[ProviderError]:
    from bitnet_providers.teachers.local.device_and_dtype import device_problems, one_or_many
    from bitnet_providers.teachers.local.model_source import problems

    return problems(options.model) + device_problems(options.device) + one_or_many(options.device, options.devices)


@hookimpl
def bitnet_teachers() -> Iterable[TeacherPlugin]:
    return [
        TeacherPlugin(
            name="local",
            options=LocalTeacherConfig,
            capabilities=LOCAL_CAPABILITIES,
            open=lazily("bitnet_providers.teachers.local.teacher:open_local"),
            summary="a model on this machine, through transformers; SmolLM2-135M-Instruct out of a wheel by default",
            requires=("torch", "transformers", "accelerate", "gguf"),
            install="pip install 'bitnet-providers[local]'",
            model_folder=_model_folder,
            check=_check_local,
            capabilities_of=_capabilities_of_local,
        ),
        *HOSTED_TEACHERS,
        *PLUGINS,
    ]
