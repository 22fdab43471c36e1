"""The chat page of `bitnet serve` in a real browser: it streams, explains its tokens, and asks nobody else."""

import asyncio
import re
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from playwright.sync_api import expect

from benchmarks.browser import MISSING, find_browser, open_browser
from bitnet_cli.serving.access_control import Access
from bitnet_cli.serving.routes import Service
from bitnet_cli.serving.start_server import bound_socket, running
from bitnet_cli.serving.waiting_line import Turns
from bitnet_core.runtime.contract import Candidate, Ending, Piece, Prompt, PromptError, Sampling, Token

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SIZES = {"desk": (1280, 900), "phone": (390, 844)}
HOSTILE = "<img src=https://example.org/x.png onerror='window.ran = true'>"
CAT = "猫".encode()


def token(text: str, logprob: float) -> Piece:
    raw = text.encode()
    return Piece(text, (Token(1, raw, logprob, (Candidate(1, raw, logprob), Candidate(2, b" coffee", -1.5))),))


@attrs.define
class Speaks:
    """Says a few tokens, then waits for `go`, then the rest; to "long" it goes on until nobody listens."""

    description: str = "scripted, A8"
    go: threading.Event = attrs.field(factory=threading.Event)
    left: threading.Event = attrs.field(factory=threading.Event)
    asked: list[tuple[Prompt, Sampling]] = attrs.field(factory=list)

    def stream(self, prompt: Prompt, sampling: Sampling) -> Generator[str, None, Ending]:
        raise AssertionError("the server reads pieces")

    def pieces(self, prompt: Prompt, sampling: Sampling) -> Generator[Piece, None, Ending]:
        self.asked.append((prompt, sampling))
        said = prompt[-1]["content"]
        if said == "refuse":
            raise PromptError("the chat template refuses this", "take turns")
        try:
            yield token("Tea", -0.5)
            if said == "long":
                while True:
                    threading.Event().wait(0.005)
                    yield token(" and more tea", -0.1)
            assert self.go.wait(60)
            yield token(" is", -0.01)
            yield Piece("猫", (Token(3, CAT[:1], -0.25), Token(4, CAT[1:], float("nan"))))
            yield token(HOSTILE, -2.0)
            yield token(" an_unbroken_word" * 30, -0.3)
            yield Piece("", (Token(0, b"<|end|>", -0.125),))
        finally:
            self.left.set()
        return Ending("stop", 7, 7)


@contextmanager
def serving(speaks: Speaks, key: str | None = None) -> Iterator[str]:
    """The server on a loop of its own thread; playwright has this one's."""
    ready, end = threading.Event(), threading.Event()
    listening = bound_socket("127.0.0.1", 0)

    async def serve() -> None:
        turns = Turns(speaks, 4)
        service = Service(
            model="tea-student", turns=turns, access=Access(True, key), default_tokens=32, created=1,
            log=lambda line: None,
        )  # fmt: skip
        async with running(service, listening):
            ready.set()
            await asyncio.to_thread(end.wait)
            speaks.go.set()
            await turns.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert ready.wait(60)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    finally:
        end.set()
        thread.join(60)
        listening.close()


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    path = find_browser()
    if path is None:
        pytest.skip(MISSING)
    with open_browser(path) as browser:
        yield browser


@contextmanager
def visit(browser: "Browser", url: str, size: str = "desk") -> "Iterator[tuple[Page, list[str], list[str]]]":
    """The page, what went wrong on it, and what it asked for."""
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, has_touch=size == "phone")
    context.set_default_timeout(60_000)
    page, faults, requests = context.new_page(), list[str](), list[str]()
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(url)
    yield page, faults, requests
    context.close()


def ask(page: "Page", text: str) -> Any:
    page.get_by_label("Message").fill(text)
    page.get_by_label("Message").press("Enter")
    return page.locator("article.assistant").last


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_a_talk(browser: "Browser", size: str) -> None:
    speaks = Speaks()
    with serving(speaks) as url, visit(browser, url, size) as (page, faults, requests):
        expect(page.locator("h1")).to_have_text("tea-student")
        expect(page.locator("#runtime")).to_have_text("scripted, A8")
        answer = ask(page, "What is tea?")
        expect(answer.locator("p")).to_have_text("Tea")  # while the model is still at work
        expect(page.get_by_role("button", name="Stop")).to_be_visible()
        speaks.go.set()
        expect(answer.locator("small")).to_have_text(re.compile(r"^7 tokens · [\d.]+ tok/s · first token after"))
        assert answer.locator("p").inner_text().startswith(f"Tea is猫{HOSTILE}")
        assert page.evaluate("window.ran") is None
        assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
        assert page.evaluate("document.querySelector('main').scrollWidth") <= SIZES[size][0]

        tip = page.get_by_role("tooltip")
        first = answer.locator(".token").first
        first.tap() if size == "phone" else first.hover()
        expect(tip).to_contain_text("60.7 %, -0.500 nats")
        expect(tip.locator("tr").nth(1)).to_have_text("␣coffee22.31 %")
        box = tip.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= SIZES[size][0]
        answer.locator(".token", has_text="猫").click()
        expect(tip).to_contain_text("not told")
        page.keyboard.press("Escape")
        expect(tip).to_be_hidden()

        ask(page, "And coffee?")
        expect(page.locator("article.assistant small").last).to_have_text(re.compile("7 tokens"))
        assert faults == []
        assert all(each.startswith((url, "data:")) for each in requests), "no request off the page"
    roles = [message["role"] for message in speaks.asked[1][0] if not isinstance(message, str)]
    assert roles == ["user", "assistant", "user"]
    assert speaks.asked[0][1].top_logprobs == 5


@pytest.mark.slow
def test_stop_ends_the_answer_on_the_server_and_a_refused_question_leaves_the_talk_as_it_was(
    browser: "Browser",
) -> None:
    speaks = Speaks()
    with serving(speaks) as url, visit(browser, url) as (page, _, _):
        answer = ask(page, "long")
        expect(answer.locator("p")).to_contain_text("more tea and more tea")
        page.get_by_role("button", name="Stop").click()
        expect(answer.locator("small")).to_contain_text("· stopped")
        assert speaks.left.wait(60)
        expect(ask(page, "refuse").locator(".wrong")).to_have_text("the chat template refuses this  → take turns")
        speaks.go.set()
        expect(ask(page, "tea?").locator("small")).to_contain_text("7 tokens")
        page.get_by_role("button", name="New chat").click()
        expect(page.locator("article")).to_have_count(0)
    texts = [message["content"] for message in speaks.asked[2][0] if not isinstance(message, str)]
    assert "refuse" not in texts
    assert texts[-1] == "tea?"


@pytest.mark.slow
def test_a_server_with_a_key_shows_the_page_and_asks_for_the_key(browser: "Browser") -> None:
    speaks = Speaks()
    speaks.go.set()
    with serving(speaks, key="fake-key") as url, visit(browser, url) as (page, _, _):
        expect(page.locator("#runtime")).to_contain_text("the API key is missing or wrong")
        page.get_by_label("API key").fill("fake-key")
        page.get_by_label("API key").press("Tab")
        expect(page.locator("h1")).to_have_text("tea-student")
        expect(ask(page, "tea?").locator("small")).to_contain_text("7 tokens")
