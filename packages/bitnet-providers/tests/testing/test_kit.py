"""The conformance kit catches what it is for: each way of breaking the contract fails the test that is about it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bitnet_providers.contract import ProviderError, RequestRefusedError, RetryableError
from bitnet_providers.testing.faults import wrong_with
from bitnet_providers.testing.network import NetworkForbiddenError, loopback_only

EXAMPLE = Path(__file__).parents[4] / "examples" / "bitnet-provider-echo"

BROKEN = """
import asyncio, attrs, json, logging, socket, sys
import numpy as np
import bitnet_provider_echo.teacher as echo
from bitnet_provider_echo.plugin import CAPABILITIES, EchoConfig
from bitnet_providers.contract import TeacherPlugin

class Broken(echo.EchoTeacher):
    {body}

def bitnet_teachers():
    return [TeacherPlugin(name="broken", options=EchoConfig, capabilities=CAPABILITIES, open=Broken, summary="broken")]
"""
CASE = "from bitnet_providers.testing import TeacherConformance\n"
CLASS = """
class Test{number}(TeacherConformance):
    plugin_module = "broken_{number}"
    plugin_name = "broken"
"""


def run_kit(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rf", *arguments],
        cwd=folder, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": f"{EXAMPLE / 'src'}{os.pathsep}{folder}", "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip


@pytest.mark.slow
def test_the_example_passes() -> None:
    done = run_kit(EXAMPLE)
    assert done.returncode == 0, done.stdout
    assert "18 passed, 7 skipped" in done.stdout  # it has no server to break


@pytest.mark.slow
def test_the_example_behind_an_api_passes() -> None:
    done = run_kit(EXAMPLE.with_name("bitnet-provider-talk"))
    assert done.returncode == 0, done.stdout
    assert "24 passed" in done.stdout


CHANGE = "async def generate(self, request):\n        answer = await super().generate(request)\n        "


WAYS = [
    (CHANGE + "return attrs.evolve(answer, text=answer.text + b'!')", "test_an_answer_keeps_the_contract[most]"),
    (
        CHANGE + "return attrs.evolve(answer, candidate_logprobs=answer.candidate_logprobs[::-1])",
        "test_an_answer_keeps_the_contract[most]",
    ),
    (
        CHANGE + "return attrs.evolve(answer, candidate_logprobs=answer.candidate_logprobs / 2)",
        "test_the_probe_trusts_its_candidates",
    ),
    (
        "async def generate(self, request):\n"
        "        return await super().generate(attrs.evolve(request, top_logprobs=9))",
        "test_an_answer_keeps_the_contract[0]",
    ),
    (
        "last = None\n    " + CHANGE + "self.last, one = answer, self.last or answer\n"
        "        await asyncio.sleep(0.001)\n        return self.last",
        "test_answers_of_many_at_once_are_not_mixed_up",
    ),
    (
        "async def generate(self, request):\n        try:\n            await asyncio.sleep(0 if self._closed else 60)\n"
        "        except asyncio.CancelledError:\n            self._closed = True\n            raise\n"
        "        return await super().generate(request)",
        "test_a_cancelled_call_leaves_it_usable[0.01]",
    ),
    (
        CHANGE + "self._asked = getattr(self, '_asked', 0) + 1\n"
        "        return attrs.evolve(answer, text=answer.text + b'!' * self._asked)",
        "test_a_seed_repeats_the_answer",
    ),
    (
        "capabilities = property(lambda self: attrs.evolve(CAPABILITIES, top_p=False))",
        "test_a_top_p_that_it_does_not_know_is_refused",
    ),
    ("async def aclose(self):\n        pass", "test_closing_twice_is_closing_once_and_a_closed_one_says_so"),
    (
        CHANGE + "logging.getLogger('sdk').debug('key sk-canary-0000-not-a-real-key')\n        return answer",
        "test_the_key_turns_up_nowhere",
    ),
    (
        CHANGE + "\n        try:\n            socket.create_connection(('192.0.2.1', 80), 0.01)\n"
        "        except OSError:\n            pass\n        return answer",
        "test_it_stays_on_this_machine",
    ),
    (
        "async def score(self, request):\n        return None",
        "test_what_it_scores_is_what_it_generates",
    ),
    ("description = {'model': 'x', 'path': sys}", "test_it_describes_itself"),
    ("import pyarrow", "test_listing_it_imports_nothing_heavy"),
]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What one session of the kit says of all broken teachers, each put to the test that is about it."""
    folder = tmp_path_factory.mktemp("broken")
    cases, chosen = CASE, []
    for number, (body, failing) in enumerate(WAYS):
        (folder / f"broken_{number}.py").write_text(BROKEN.format(body=body))
        cases += CLASS.format(number=number)
        chosen.append(f"test_broken.py::Test{number}::{failing}")
    (folder / "test_broken.py").write_text(cases)
    return run_kit(folder, *chosen).stdout


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(WAYS)), ids=[failing for _, failing in WAYS])
def test_a_broken_teacher_fails(outcome: str, number: int) -> None:
    assert f"FAILED test_broken.py::Test{number}::{WAYS[number][1]}" in outcome, outcome


def test_errors_are_held_against_the_contract() -> None:
    good = {
        "rate limit": RetryableError("slow down", retry_after_s=3.0, overloaded=True),
        "unavailable": RetryableError("503"),
        "cut": RetryableError("cut", possibly_paid=True),
        "bad request": RequestRefusedError("no"),
        "unauthorized": ProviderError("key"),
        "garbage": ProviderError("no JSON"),
    }
    for fault, error in good.items():
        assert wrong_with(error, fault) is None  # type: ignore[arg-type]
    assert "retry_after_s is None, not 3.0" in str(wrong_with(RetryableError("429", overloaded=True), "rate limit"))
    assert "overloaded is False" in str(wrong_with(RetryableError("429", retry_after_s=3.0), "rate limit"))
    assert "possibly_paid is False" in str(wrong_with(RetryableError("cut"), "cut"))
    assert "no request will work until" in str(wrong_with(RequestRefusedError("key"), "unauthorized"))
    assert "instead of RequestRefusedError" in str(wrong_with(ProviderError("no"), "bad request"))
    assert "ValueError was raised instead of ProviderError" in str(wrong_with(ValueError("x"), "garbage"))
    assert wrong_with(ProviderError(" "), "garbage") == "garbage: the error says nothing"


def test_the_guard_lets_loopback_through_only() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, loopback_only() as tried:
        socket.create_connection(server.getsockname(), 1).close()
        socket.create_connection(("localhost", server.getsockname()[1]), 1).close()
        for host in ("192.0.2.1", "example.test"):
            with pytest.raises(NetworkForbiddenError):
                socket.create_connection((host, 80), 1)
    assert tried == ["192.0.2.1", "example.test"]
