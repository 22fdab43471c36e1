"""llama.cpp's own server in this process, with SmolLM2 out of its wheel."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def llamacpp_url() -> Iterator[str]:
    """Base URL of an OpenAI-shaped server; its model is the one that the `local` teacher has by default."""
    xllamacpp = pytest.importorskip("xllamacpp", reason="the wheel xllamacpp is not installed")
    from bitnet_providers.contract import ProviderError
    from bitnet_providers.local.embedded import find_embedded

    try:
        model = find_embedded()
    except ProviderError as error:
        pytest.skip(str(error))
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.model_alias = {"smollm2"}
    params.n_ctx = 2048
    params.n_parallel = 4
    params.port = 0
    params.cpuparams.n_threads = 1
    params.verbosity = 0
    server = xllamacpp.Server(params)
    yield f"{server.listening_address}/v1"
    del server
