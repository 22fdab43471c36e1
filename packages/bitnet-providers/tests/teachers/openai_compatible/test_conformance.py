"""The OpenAI-shaped teachers keep the contract: the kit on a scripted server with faults, and on llama.cpp's own."""

from collections.abc import Iterator
from typing import Any

import pytest

from bitnet_providers.teachers.openai_compatible.options import (
    AimlapiConfig,
    GroqConfig,
    OpenAICompatibleConfig,
    OpenAIConfig,
    ServerOptions,
)
from bitnet_providers.testing import TeacherConformance
from loopback.faults import CUT_BODY, INVALID_JSON, FaultPlayer, failing, rate_limited, script, serving
from loopback.openai_server import KEY, OpenAIServer, error_body

FAULTS = {
    "rate limit": rate_limited("3"),
    "unavailable": failing(503),
    "cut": CUT_BODY,
    "bad request": failing(400),
    "unauthorized": failing(401),
    "garbage": INVALID_JSON,
}


class TestOpenAI(TeacherConformance):
    plugin_module = "bitnet_providers.plugin"
    plugin_name = "openai"
    canary = KEY
    has_a_model = False
    config: type[ServerOptions] = OpenAIConfig
    path = "/v1"
    more: dict[str, Any] = {}  # noqa: RUF012

    @pytest.fixture
    def player(self) -> FaultPlayer:
        return FaultPlayer(error_body=error_body)

    @pytest.fixture
    def options(self, player: FaultPlayer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
        monkeypatch.setenv("LOOPBACK_KEY", self.canary)
        with serving(OpenAIServer().app(player)) as url:
            yield self.config(model="loopback-1", base_url=url + self.path, api_key_env="LOOPBACK_KEY", **self.more)

    @pytest.fixture
    def break_server(self, player: FaultPlayer) -> Any:
        return lambda fault: player.reset(script() if fault is None else lambda number: FAULTS[fault])


class TestOpenAIStreamed(TestOpenAI):
    more = {"stream": True}  # noqa: RUF012


class TestAimlapi(TestOpenAI):
    plugin_name = "aimlapi"
    config = AimlapiConfig


class TestGroq(TestOpenAI):
    plugin_name = "groq"
    config = GroqConfig
    path = ""


class TestVllm(TestOpenAI):
    """The scripted server scores as vLLM does."""

    plugin_name = "openai-compatible"
    config = OpenAICompatibleConfig
    more = {"preset": "vllm"}  # noqa: RUF012


class TestLlamacpp(TeacherConformance):
    """A real model behind a real server: the probe takes part."""

    plugin_module = "bitnet_providers.plugin"
    plugin_name = "openai-compatible"

    @pytest.fixture
    def options(self, llamacpp_url: str) -> Any:
        return OpenAICompatibleConfig(
            preset="llamacpp", base_url=llamacpp_url, model="smollm2", end_of_turn="<|im_end|>"
        )
