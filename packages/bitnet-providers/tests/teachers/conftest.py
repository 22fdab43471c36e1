"""What the tests of hosted teachers share."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from bitnet_providers.contract import Completion, GenerateRequest, Message, ProviderError, Sampling, Teacher

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loopback server is reached itself, whatever the machine's proxy is."""
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)


def conversation(*turns: str, system: str | None = None) -> tuple[Message, ...]:
    """User and assistant in turn, the user first."""
    said = [{"role": ("user", "assistant")[index % 2], "content": turn} for index, turn in enumerate(turns)]
    return tuple(([{"role": "system", "content": system}] if system else []) + said)


@pytest.fixture
def ask() -> Callable[..., Any]:
    """``ask(open, "hello", "hi", system=..., top=5, times=1, temperature=...)``: opens a teacher, asks, closes it.

    Gives the completion, or the ProviderError that was raised; with `times`, a list of them, asked at once.
    """

    def run(
        open_teacher: Callable[[], Teacher],
        *turns: str,
        system: str | None = None,
        messages: tuple[Message, ...] | None = None,
        top: int = 0,
        times: int | None = None,
        **sampling: Any,
    ) -> Any:
        request = GenerateRequest(
            messages or conversation(*(turns or ("hello",)), system=system), Sampling(**sampling), top
        )

        async def one(teacher: Teacher) -> Completion | ProviderError:
            try:
                return await teacher.generate(request)
            except ProviderError as error:
                return error

        async def all_of_them() -> list[Completion | ProviderError]:
            teacher = open_teacher()
            try:
                return list(await asyncio.gather(*(one(teacher) for _ in range(times or 1))))
            finally:
                await teacher.aclose()

        answers = asyncio.run(all_of_them())
        return answers[0] if times is None else answers

    return run


@pytest.fixture
def ask_too_slow(ask: Callable[..., Any]) -> Callable[[Callable[..., Teacher]], Any]:
    """``ask_too_slow(open)``: asks a server that takes seconds with a patience of 0.15; gives the error.

    Asked again where a busy machine had not even connected by then, and so nothing was sent.
    """

    def run(open_teacher: Callable[..., Teacher]) -> Any:
        for _ in range(50):
            error = ask(lambda: open_teacher(timeout_s=0.15))
            if getattr(error, "possibly_paid", False):
                break
        return error

    return run


@pytest.fixture
def everything_logged(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """All loggers at DEBUG; gives what was logged, with the fields that only a JSON formatter would show."""
    caplog.set_level(logging.DEBUG)
    return lambda: "\n".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records)
