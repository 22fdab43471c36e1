"""`teacher.base_urls` over HTTP: what is refused, what the probe compares, and calls that go to whoever is there."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import attrs
import pytest

from bitnet_providers.contract import GenerateRequest, ProviderError, RetryableError, Sampling
from bitnet_providers.probe.questions import estimate, probe_teacher
from bitnet_providers.probe.verdict import verdict_key
from bitnet_providers.teachers.openai_compatible.model_url_key import capabilities_of, problems
from bitnet_providers.teachers.openai_compatible.options import OpenAICompatibleConfig
from bitnet_providers.teachers.openai_compatible.teacher import open_with_openai
from loopback.faults import serving
from loopback.openai_server import OpenAIServer

pytestmark = pytest.mark.timeout(120)  # a request that no server takes would be waited for
NOBODY = "http://127.0.0.1:9/v1"
"""The port of `discard`: no server listens there."""


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """``serve(OpenAIServer(key=""))`` gives its base URL."""
    with ExitStack() as stack:
        yield lambda server: f"{stack.enter_context(serving(server.app()))}/v1"


def options(*urls: str, **more: Any) -> OpenAICompatibleConfig:
    return OpenAICompatibleConfig(model="loopback-1", base_urls=urls, **more)


def probe(*urls: str, **more: Any) -> Any:
    async def no_sleep(seconds: float) -> None:
        await asyncio.sleep(0)

    async def main() -> Any:
        teacher: Any = open_with_openai(options(*urls, **more))
        try:
            return await probe_teacher(teacher, "openai-compatible", sleep=no_sleep), teacher
        finally:
            await teacher.aclose()

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"base_urls": ("http://a/v1",), "base_url": "http://b/v1"}, "base_urls: base_url is set as well"),
        ({"base_urls": ("http://a/v1", "http://a/v1/")}, "base_urls: http://a/v1 stands there twice"),
        ({"base_urls": ("http://a/v1", "http://u:p@b:x/v1")}, 'base_urls: "b:x/v1" is not a URL of a server'),
    ],
)
def test_what_is_wrong_is_told_with_its_fix(more: dict[str, Any], why: str) -> None:
    (problem,) = problems(OpenAICompatibleConfig(model="m", **more))
    assert problem.why == why
    assert problem.fix
    with pytest.raises(ProviderError, match=r"teacher\.base_urls"):
        open_with_openai(OpenAICompatibleConfig(model="m", **more))


def test_the_order_of_the_urls_is_no_setting() -> None:
    one, other = options("http://a/v1", "http://b/v1"), options("http://b/v1", "http://a/v1")
    assert one == other
    assert verdict_key("x", one, {}) == verdict_key("x", other, {}) != verdict_key("x", options("http://a/v1"), {})


def test_a_verdict_on_one_server_keeps_the_key_that_it_had_before_there_were_several() -> None:
    @attrs.frozen
    class Before:
        model: str = "m"

    @attrs.frozen
    class Now:
        model: str = "m"
        base_urls: tuple[str, ...] = attrs.field(default=(), metadata={"later": True})

    assert verdict_key("x", Before(), {}) == verdict_key("x", Now(), {})


def test_one_server_elsewhere_makes_the_teacher_external() -> None:
    assert not capabilities_of(options("http://127.0.0.1:1/v1", "http://localhost:2/v1")).external
    assert capabilities_of(options("http://127.0.0.1:1/v1", "https://x.test/v1")).external


def test_servers_that_agree_are_one_teacher(serve: Callable[..., str]) -> None:
    servers = [OpenAIServer(key=""), OpenAIServer(key="")]
    verdict, teacher = probe(*map(serve, servers))
    assert [len(each.seen) for each in servers] == [6, 6]
    assert verdict.requests == 12 == estimate(teacher.capabilities, 2).requests
    assert "2 servers were asked, and agree" in verdict.notes
    alone, _ = probe(serve(OpenAIServer(key="")))
    assert verdict.for_metadata() == alone.for_metadata()  # so the shards are the same


def other_logprobs(whole: dict[str, Any]) -> dict[str, Any]:
    """As another model of the same name has them: the same tokens, flatter."""
    for entry in (whole["choices"][0]["logprobs"] or {}).get("content", ()):
        for each in (entry, *entry["top_logprobs"]):
            each["logprob"] = each["logprob"] * 0.5 - 1.5
    return whole


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (OpenAIServer(key="", model="loopback-2"), "model 'loopback-"),
        (OpenAIServer(key="", answer=other_logprobs), "the same question has log-probabilities 0."),
    ],
)
def test_servers_that_differ_are_refused(serve: Callable[..., str], other: OpenAIServer, said: str) -> None:
    with pytest.raises(ProviderError) as caught:
        probe(serve(OpenAIServer(key="")), serve(other), max_top_logprobs=5)
    assert caught.value.why.startswith("teacher.base_urls: http://127.0.0.1:")
    assert "is not the same teacher as http://127.0.0.1:" in caught.value.why
    assert said in caught.value.why
    assert caught.value.fix.startswith("take one of them out of teacher.base_urls")


def test_a_server_that_is_not_there_is_left_out_and_told(serve: Callable[..., str]) -> None:
    url = serve(OpenAIServer(key=""))
    verdict, teacher = probe(url, NOBODY)
    assert verdict.trusted_for_kd
    assert [each.description["base_url"] for each in teacher.servers] == [url]
    assert [each.description["base_url"] for each in teacher.left_out] == [NOBODY]
    assert any(note.startswith(f"{NOBODY} is left out") for note in verdict.notes)


def test_none_that_is_there_is_an_error() -> None:
    with pytest.raises(ProviderError, match="was not reached"):
        probe(NOBODY, "http://127.0.0.1:10/v1")


def test_a_single_call_goes_to_a_server_that_is_there(serve: Callable[..., str]) -> None:
    server = OpenAIServer(key="")
    request = GenerateRequest(({"role": "user", "content": "hello"},), Sampling(max_new_tokens=2), 0)

    async def main(*urls: str) -> None:
        teacher = open_with_openai(options(*urls))
        try:
            for _ in range(3):
                await teacher.generate(request)
        finally:
            await teacher.aclose()

    asyncio.run(main(NOBODY, serve(server)))
    assert len(server.seen) == 3
    with pytest.raises(RetryableError, match="was not reached"):
        asyncio.run(main(NOBODY, "http://127.0.0.1:10/v1"))
