from collections.abc import Iterator

import pytest
import torch

from bitnet_core.kernels.compile import instruction_sets


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is compiled is compiled for these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BITNET_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("BITNET_CPU", raising=False)
        if torch.cuda.is_available():  # these tests are about the C++; test_runtime_triton.py is about the GPU
            patch.setenv("BITNET_CPU", instruction_sets()[0])
        yield
