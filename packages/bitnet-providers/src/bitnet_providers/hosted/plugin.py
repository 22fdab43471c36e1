"""The records of the hosted teachers with their own protocols; each SDK is imported when its teacher is opened."""

from typing import Any

from bitnet_providers.contract import Teacher, TeacherPlugin
from bitnet_providers.hosted.access import access_problems, missing_modules
from bitnet_providers.hosted.capabilities import ANTHROPIC_CAPABILITIES, ANTHROPIC_URL, GEMINI_CAPABILITIES, GEMINI_URL
from bitnet_providers.hosted.config import AnthropicTeacherConfig, GeminiLegacyTeacherConfig, GeminiTeacherConfig

ANTHROPIC_MODULES = ("anthropic",)
GEMINI_MODULES = ("google.genai", "httpx2")
GEMINI_LEGACY_MODULES = ("google.generativeai",)


def _install(extra: str) -> str:
    return f"pip install 'bitnet-providers[{extra}]'"


def _open_anthropic(options: AnthropicTeacherConfig) -> Teacher:
    from bitnet_providers.hosted.anthropic_teacher import open_anthropic

    return open_anthropic(options)


def _open_gemini(options: GeminiTeacherConfig) -> Teacher:
    from bitnet_providers.hosted.gemini_teacher import open_gemini

    return open_gemini(options)


def _open_gemini_legacy(options: GeminiLegacyTeacherConfig) -> Teacher:
    from bitnet_providers.hosted.gemini_legacy_teacher import open_gemini_legacy

    return open_gemini_legacy(options)


def _check_anthropic(options: Any) -> list[str]:
    return missing_modules(ANTHROPIC_MODULES, _install("anthropic")) + access_problems(options, ANTHROPIC_URL)


def _check_gemini(options: Any) -> list[str]:
    return missing_modules(GEMINI_MODULES, _install("gemini")) + access_problems(options, GEMINI_URL)


def _check_gemini_legacy(options: Any) -> list[str]:
    return missing_modules(GEMINI_LEGACY_MODULES, _install("gemini-legacy")) + access_problems(options, GEMINI_URL)


HOSTED_TEACHERS = (
    TeacherPlugin(
        name="anthropic",
        options=AnthropicTeacherConfig,
        capabilities=ANTHROPIC_CAPABILITIES,
        open=_open_anthropic,
        summary="Claude; text only, no log-probabilities: a student learns from the sampled tokens",
        requires=ANTHROPIC_MODULES,
        install=_install("anthropic"),
        check=_check_anthropic,
    ),
    TeacherPlugin(
        name="gemini",
        options=GeminiTeacherConfig,
        capabilities=GEMINI_CAPABILITIES,
        open=_open_gemini,
        summary="Google's models through google-genai; top log-probabilities where the model gives them",
        requires=GEMINI_MODULES,
        install=_install("gemini"),
        check=_check_gemini,
    ),
    TeacherPlugin(
        name="gemini-legacy",
        options=GeminiLegacyTeacherConfig,
        capabilities=GEMINI_CAPABILITIES,
        open=_open_gemini_legacy,
        summary='deprecated: google-generativeai, retired by Google in 2025; use "gemini"',
        requires=GEMINI_LEGACY_MODULES,
        install=_install("gemini-legacy"),
        check=_check_gemini_legacy,
    ),
)
