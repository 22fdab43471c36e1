"""talk keeps the contract: the kit's tests, inherited, against a server that plays the API."""

import threading
from collections.abc import Callable, Iterator

import pytest
from bitnet_provider_talk.plugin import TalkConfig
from talk_server import TalkServer

from bitnet_providers.testing import TeacherConformance


class TestTalk(TeacherConformance):
    plugin_module = "bitnet_provider_talk.plugin"
    plugin_name = "talk"

    @pytest.fixture
    def server(self) -> Iterator[TalkServer]:
        server = TalkServer()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        server.server_close()
        thread.join()

    @pytest.fixture
    def options(self, server: TalkServer, monkeypatch: pytest.MonkeyPatch) -> TalkConfig:
        monkeypatch.setenv("TALK_API_KEY", self.canary)
        return TalkConfig(base_url=server.url)

    @pytest.fixture
    def break_server(self, server: TalkServer) -> Callable[[str | None], None]:
        return server.play
