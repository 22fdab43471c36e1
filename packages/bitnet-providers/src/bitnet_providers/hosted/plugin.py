"""The records of the hosted teachers with their own protocols; each SDK is imported when its teacher is opened."""

from functools import partial
from typing import Any

from bitnet_providers.contract import TeacherPlugin
from bitnet_providers.hosted.access import access_problems, missing_modules
from bitnet_providers.hosted.capabilities import ANTHROPIC_CAPABILITIES, ANTHROPIC_URL, GEMINI_CAPABILITIES, GEMINI_URL
from bitnet_providers.hosted.config import AnthropicTeacherConfig, GeminiLegacyTeacherConfig, GeminiTeacherConfig
from bitnet_providers.lazy import lazily

ANTHROPIC_MODULES = ("anthropic",)
GEMINI_MODULES = ("google.genai", "httpx2")
GEMINI_LEGACY_MODULES = ("google.generativeai",)


def _install(extra: str) -> str:
    return f"pip install 'bitnet-providers[{extra}]'"


def _problems(modules: tuple[str, ...], extra: str, url: str, options: Any) -> list[str]:
    return missing_modules(modules, _install(extra)) + access_problems(options, url)


HOSTED_TEACHERS = (
    TeacherPlugin(
        name="anthropic",
        options=AnthropicTeacherConfig,
        capabilities=ANTHROPIC_CAPABILITIES,
        open=lazily("bitnet_providers.hosted.anthropic_teacher:open_anthropic"),
        summary="Claude; text only, no log-probabilities: a student learns from the sampled tokens",
        requires=ANTHROPIC_MODULES,
        install=_install("anthropic"),
        check=partial(_problems, ANTHROPIC_MODULES, "anthropic", ANTHROPIC_URL),
    ),
    TeacherPlugin(
        name="gemini",
        options=GeminiTeacherConfig,
        capabilities=GEMINI_CAPABILITIES,
        open=lazily("bitnet_providers.hosted.gemini_teacher:open_gemini"),
        summary="Google's models through google-genai; top log-probabilities where the model gives them",
        requires=GEMINI_MODULES,
        install=_install("gemini"),
        check=partial(_problems, GEMINI_MODULES, "gemini", GEMINI_URL),
    ),
    TeacherPlugin(
        name="gemini-legacy",
        options=GeminiLegacyTeacherConfig,
        capabilities=GEMINI_CAPABILITIES,
        open=lazily("bitnet_providers.hosted.gemini_legacy_teacher:open_gemini_legacy"),
        summary='deprecated: google-generativeai, retired by Google in 2025; use "gemini"',
        requires=GEMINI_LEGACY_MODULES,
        install=_install("gemini-legacy"),
        check=partial(_problems, GEMINI_LEGACY_MODULES, "gemini-legacy", GEMINI_URL),
    ),
)
