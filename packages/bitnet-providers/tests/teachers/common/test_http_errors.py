"""Statuses, waits and secrets."""

import pytest

from bitnet_providers.contract import ProviderError, RequestRefusedError, RetryableError
from bitnet_providers.teachers.common.http_errors import Redactor, answer_lost, not_sent, status_error

CANARY = "sk-canary/0123+456"


@pytest.mark.parametrize(
    ("status", "kind"),
    [(status, RequestRefusedError) for status in (400, 413, 422, 424, 451)]
    + [(status, RetryableError) for status in (408, 409, 425, 429, 498, 499, 500, 502, 503, 504, 524, 529)]
    + [(status, ProviderError) for status in (301, 401, 402, 403, 404, 405, 407, 410, 415, 421)],
)
def test_each_status_has_its_kind(status: int, kind: type[ProviderError]) -> None:
    error = status_error(status, "no", who="acme", key="ACME_API_KEY", headers={"Retry-After": "4"}, wait_s=9.0)
    assert type(error) is kind
    assert str(error).startswith(f"acme answered {status}: no")
    if isinstance(error, RetryableError):
        assert error.retry_after_s == 4.0
        assert error.overloaded == (status in (429, 498))
        assert error.possibly_paid == (status in (408, 499, 504, 524))


def test_a_wait_in_the_body_counts_where_the_headers_tell_none() -> None:
    error = status_error(429, "", who="acme", key="K", headers={}, wait_s=9.0)
    assert isinstance(error, RetryableError)
    assert (str(error), error.retry_after_s) == ("acme answered 429", 9.0)


def test_errors_that_a_person_mends_say_how() -> None:
    assert "environment variable ACME_API_KEY" in str(status_error(401, "no", who="acme", key="ACME_API_KEY"))
    assert "teacher.model" in str(status_error(404, "no", who="acme", key="K"))


def test_a_lost_answer_may_have_been_paid_and_an_unsent_request_not() -> None:
    assert answer_lost("acme", "cut").possibly_paid
    assert not not_sent("acme", "refused").possibly_paid


@pytest.mark.parametrize(
    "text",
    [
        f"https://x.test/v1?key={CANARY}&alt=json",
        "https://x.test/v1?key=sk-canary%2F0123%2B456",
        f"Authorization: Bearer {CANARY}",
        f"{{'x-goog-api-key': '{CANARY}'}}",
        f"the key {CANARY} is not valid",
    ],
)
def test_a_secret_does_not_get_through(text: str) -> None:
    redact = Redactor(CANARY)
    assert "canary" not in redact(text)
    assert "***" in redact(text)
    assert "canary" not in repr(redact)
    if "not valid" not in text:  # these are told by their place, too
        assert "canary" not in Redactor()(text)


def test_half_a_surrogate_pair_can_be_written_down() -> None:
    assert Redactor()("no \ud83d way").encode() == b"no ? way"


def test_what_is_no_secret_stays_and_is_one_short_line() -> None:
    redact = Redactor("", CANARY)
    assert redact("two\n  lines of key words") == "two lines of key words"
    assert len(redact("x" * 5000)) == 400


def test_a_proxys_password_and_terminal_escapes_are_taken_out() -> None:
    redact = Redactor()
    for url in ("http://user:canary@127.0.0.1:3128", "https://canary@host/v1", "socks5:/user:ca@nary@host"):
        assert "nary" not in redact(f"cannot connect to {url}: refused")
    assert redact("at http://127.0.0.1:8000/v1, a@b") == "at http://127.0.0.1:8000/v1, a@b"
    assert redact("a\x1b]0;owned\x07b\x9b2Jc\u202ed\re") == "a\ufffd]0;owned\ufffdb\ufffd2Jc\ufffdd e"
