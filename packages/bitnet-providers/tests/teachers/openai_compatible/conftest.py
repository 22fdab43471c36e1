"""llama.cpp's own server, with SmolLM2 out of its wheel."""

from collections.abc import Iterator

import pytest

from loopback import llamacpp_server


@pytest.fixture(scope="session")
def llamacpp_url() -> Iterator[str]:
    """Base URL of an OpenAI-shaped server; its model is the one that the `local` teacher has by default."""
    pytest.importorskip("xllamacpp", reason="the wheel xllamacpp is not installed")
    from bitnet_providers.contract import ProviderError
    from bitnet_providers.teachers.local.model_source import find_embedded

    try:
        model = find_embedded()
    except ProviderError as error:
        pytest.skip(str(error))
    with llamacpp_server.running(model, model_alias=["smollm2"], n_ctx=2048, n_parallel=4) as url:
        yield f"{url}/v1"
