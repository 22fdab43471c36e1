from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is compiled is compiled for these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BITNET_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("BITNET_CPU", raising=False)
        yield
