"""The hosted teachers keep the contract: the kit against servers that speak their wire formats and play faults."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bitnet_providers.teachers.anthropic.options import AnthropicTeacherConfig
from bitnet_providers.teachers.gemini.options import GeminiLegacyTeacherConfig, GeminiTeacherConfig
from bitnet_providers.testing import Fault, TeacherConformance
from loopback import anthropic_server, gemini_server
from loopback.anthropic_server import AnthropicServer
from loopback.faults import CUT_BODY, INVALID_JSON, FaultPlayer, failing, rate_limited, script, serving
from loopback.gemini_server import GeminiServer

FAULTS = {
    "rate limit": rate_limited("3"),
    "unavailable": failing(503),
    "cut": CUT_BODY,
    "bad request": failing(400),
    "unauthorized": failing(401),
    "garbage": INVALID_JSON,
}


def breaker(player: FaultPlayer) -> Callable[[Fault | None], None]:
    """The kit's `break_server` on a loopback server."""
    return lambda fault: player.reset(script() if fault is None else lambda number: FAULTS[fault])


class TestAnthropic(TeacherConformance):
    plugin_module = "bitnet_providers.plugin"
    plugin_name = "anthropic"
    canary = anthropic_server.KEY

    @pytest.fixture
    def server(self) -> AnthropicServer:
        return AnthropicServer()

    @pytest.fixture
    def options(self, server: AnthropicServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
        monkeypatch.setenv("ANTHROPIC_API_KEY", self.canary)
        with serving(server.app()) as url:
            yield AnthropicTeacherConfig(model="claude-loopback-4", base_url=url)

    @pytest.fixture
    def break_server(self, server: AnthropicServer) -> Any:
        return breaker(server.player)


class TestGemini(TeacherConformance):
    plugin_module = "bitnet_providers.plugin"
    plugin_name = "gemini"
    canary = gemini_server.KEY
    config: type = GeminiTeacherConfig

    @pytest.fixture
    def server(self) -> GeminiServer:
        return GeminiServer()

    @pytest.fixture
    def options(self, server: GeminiServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
        monkeypatch.setenv("GEMINI_API_KEY", self.canary)
        with serving(server.app()) as url:
            yield self.config(model="gemini-loopback", base_url=url)

    @pytest.fixture
    def break_server(self, server: GeminiServer) -> Any:
        return breaker(server.player)


@pytest.mark.filterwarnings('ignore:teacher.kind = "gemini-legacy":FutureWarning')
class TestGeminiLegacy(TestGemini):
    plugin_name = "gemini-legacy"
    config = GeminiLegacyTeacherConfig
