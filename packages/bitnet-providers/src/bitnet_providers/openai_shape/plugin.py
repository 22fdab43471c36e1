"""The OpenAI-shaped teachers as the plugin system lists them; no SDK is imported before one is opened."""

from functools import partial

from bitnet_providers.contract import Capabilities, TeacherPlugin
from bitnet_providers.lazy import lazily
from bitnet_providers.openai_shape.config import AimlapiConfig, GroqConfig, OpenAICompatibleConfig, OpenAIConfig
from bitnet_providers.openai_shape.server import capabilities_of, problems

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
    open=lazily("bitnet_providers.openai_shape.teacher:open_with_openai"),
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
        open=lazily("bitnet_providers.openai_shape.teacher:open_with_groq"),
        requires=("groq",),
        install="pip install 'bitnet-providers[groq]'",
        check=problems,
        capabilities_of=capabilities_of,
    ),
)
