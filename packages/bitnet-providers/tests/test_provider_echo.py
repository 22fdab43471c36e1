"""The example plugin does what its README says."""

import asyncio
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from bitnet_providers.contract import GenerateRequest, ProviderError, Sampling, ScoreRequest

SOURCE = Path(__file__).parents[3] / "examples" / "bitnet-provider-echo" / "src"


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(SOURCE)
    import bitnet_provider_echo.plugin as module

    yield module
    for name in [name for name in sys.modules if name.startswith("bitnet_provider_echo")]:
        del sys.modules[name]


def generate(teacher: Any, text: str, **sampling: Any) -> Any:
    request = GenerateRequest(({"role": "user", "content": text},), Sampling(**sampling), 9)
    return asyncio.run(teacher.generate(request))


def test_it_repeats_with_its_stated_distribution(plugin: ModuleType) -> None:
    (record,) = plugin.bitnet_teachers()
    assert (record.name, record.capabilities.external, record.capabilities.scoring) == ("echo", False, False)
    teacher = record.open(record.options(p_next=0.8))
    completion = generate(teacher, "give it to the cat")
    assert completion.text == b"give it to the cat"
    assert completion.token_bytes == (b"give", b" it", b" to", b" the", b" cat")
    assert completion.token_ids is None
    np.testing.assert_allclose(completion.token_logprobs, math.log(0.8), rtol=1e-6)
    probabilities = np.exp(completion.candidate_logprobs.astype(np.float64)).reshape(5, 9)
    np.testing.assert_allclose(probabilities.sum(-1), 1.0, rtol=1e-6)
    names = np.array(completion.candidate_bytes, object).reshape(5, 9)
    assert tuple(names[:, 0]) == completion.token_bytes
    assert all(len(set(row)) == 9 for row in names)


def test_it_is_cut_where_it_is_told(plugin: ModuleType) -> None:
    (record,) = plugin.bitnet_teachers()
    completion = generate(record.open(record.options()), "one two three", max_new_tokens=2)
    assert (completion.text, completion.finish_reason) == (b"one two", "length")


def test_it_says_what_it_can_not(plugin: ModuleType) -> None:
    (record,) = plugin.bitnet_teachers()
    teacher = record.open(record.options())
    with pytest.raises(ProviderError, match="echo does not score given text"):
        asyncio.run(teacher.score(ScoreRequest("x", 1)))
    with pytest.raises(ProviderError, match="needs a user message"):
        asyncio.run(teacher.generate(GenerateRequest(({"role": "system", "content": "x"},), Sampling(), 1)))
