"""`TeacherConformance`: subclass it, name the plugin, and pytest runs what every teacher has to keep.

Tests that a teacher's capabilities don't call for are skipped. Each opens the teacher on an event loop of its own, as
SDK clients are bound to the loop that they were first used on.
"""

import asyncio
import importlib
import json
import logging
import subprocess
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, ClassVar, TypeVar, get_args

import attrs
import numpy as np
import pytest

from bitnet_providers.contract import (
    Capabilities,
    Completion,
    GenerateRequest,
    ProviderError,
    Sampling,
    ScoreRequest,
    Teacher,
    TeacherPlugin,
)
from bitnet_providers.hookspecs import API_VERSION
from bitnet_providers.probe.inspect_answer import faults, inspect_answer, without_value
from bitnet_providers.probe.questions import probe_teacher
from bitnet_providers.testing.faults import Fault, wrong_with
from bitnet_providers.testing.network import loopback_only

Answer = TypeVar("Answer")
OpenTeacher = Callable[[], Teacher]
BreakServer = Callable[[Fault | None], None]

HEAVY = ("torch", "transformers", "pyarrow", "pandas", "grpc")
"""Modules that are never needed to list a teacher, whatever a plugin `requires`."""


class TeacherConformance:
    """The kit. Set `plugin_module` and `plugin_name`; override fixtures where the teacher needs more."""

    plugin_module: ClassVar[str]
    """The module that the entry point names, e.g. ``"my_package.plugin"``."""
    plugin_name: ClassVar[str]
    """The teacher's name in it: the manifest's ``teacher.kind``."""
    canary: ClassVar[str] = "sk-canary-0000-not-a-real-key"
    """A key to open the teacher with (``monkeypatch.setenv`` in `options`); it must turn up nowhere."""
    deterministic: ClassVar[bool] = True
    """At temperature 0 the same question gets the same answer; False for a live hosted model."""
    has_a_model: ClassVar[bool] = True
    """False for a server that plays a script: its distributions are no model's, and the probe would say so."""
    network_allowed: ClassVar[bool] = False
    """True for tests against a live API: connections may then leave this machine."""
    max_new_tokens: ClassVar[int] = 8
    timeout_s: ClassVar[float] = 60.0
    """For one test's questions together."""

    # Fixtures to override

    @pytest.fixture
    def plugin(self) -> TeacherPlugin:
        """The record that the plugin's hook returns."""
        module = importlib.import_module(self.plugin_module)
        records: list[TeacherPlugin] = list(module.bitnet_teachers())
        found = [record for record in records if record.name == self.plugin_name]
        assert len(found) == 1, f"{self.plugin_module} brings {[each.name for each in records]}"
        return found[0]

    @pytest.fixture
    def options(self, plugin: TeacherPlugin) -> Any:
        """The teacher's options. Override it where the defaults don't do: a model, a loopback server, the canary."""
        return plugin.options()

    @pytest.fixture
    def open_teacher(self, plugin: TeacherPlugin, options: Any) -> OpenTeacher:
        """Opens a teacher; called anew in each test."""
        return lambda: plugin.open(options)

    @pytest.fixture
    def break_server(self) -> BreakServer | None:
        """Override it where the server is a faulty one of your own: called with a fault, every request meets that
        fault from then on; with None, no longer."""
        return None

    # How the tests ask

    @pytest.fixture(autouse=True)
    def stays_on_this_machine(self) -> Iterator[list[str]]:
        """Every test runs under the guard, unless `network_allowed`."""
        if self.network_allowed:
            yield []
            return
        with loopback_only() as tried:
            yield tried
        assert tried == [], f"the teacher tried to reach {tried}"

    def ask(self, open_teacher: OpenTeacher, question: Callable[[Teacher], Awaitable[Answer]]) -> Answer:
        """Open, ask, close: on one event loop."""

        async def main() -> Answer:
            teacher = open_teacher()
            try:
                return await asyncio.wait_for(question(teacher), self.timeout_s)
            finally:
                await teacher.aclose()

        return asyncio.run(main())

    def request(
        self, text: str = "What is the capital of France?", top_logprobs: int = 0, **sampling: Any
    ) -> GenerateRequest:
        """A greedy request of at most `max_new_tokens`; `sampling` overrides."""
        chosen = {"temperature": 0.0, "max_new_tokens": self.max_new_tokens} | sampling
        return GenerateRequest(({"role": "user", "content": text},), Sampling(**chosen), top_logprobs)

    # The record

    def test_the_record_is_whole(self, plugin: TeacherPlugin, options: Any) -> None:
        assert plugin.api_version <= API_VERSION
        assert attrs.has(plugin.options), "options: an attrs class"
        assert isinstance(options, plugin.options)
        frozen: Any = options
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            frozen.any_name = None
        for field in attrs.fields(plugin.options):
            assert field.metadata.get("help"), f"options.{field.name}: declare it with setting(..., help=...)"
        assert isinstance(plugin.capabilities, Capabilities)
        assert plugin.summary, "summary: say in a line what the teacher is"
        assert bool(plugin.requires) <= bool(plugin.install), "install: the command that brings what `requires` names"
        assert plugin.check is None or plugin.check(options) == []

    def test_listing_it_imports_nothing_heavy(self, plugin: TeacherPlugin) -> None:
        heavy = tuple(dict.fromkeys((*HEAVY, *plugin.requires)))
        code = (
            f"import importlib, sys\nsys.path[:] = {sys.path!r}\n"
            f"list(importlib.import_module({self.plugin_module!r}).bitnet_teachers())\n"
            f"print([name for name in {heavy!r} if name in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == "[]", "import these inside of `open`"

    def test_it_describes_itself(self, open_teacher: OpenTeacher) -> None:
        async def question(teacher: Teacher) -> tuple[Mapping[str, Any], Capabilities]:
            return teacher.description, teacher.capabilities

        description, capabilities = self.ask(open_teacher, question)
        assert json.loads(json.dumps(dict(description))) == dict(description), "description: plain JSON values"
        assert description.get("model"), 'description["model"]: the model\'s name'
        assert isinstance(capabilities, Capabilities)

    # Answers

    @pytest.mark.parametrize("asked", [0, 1, 5, None], ids=lambda asked: "most" if asked is None else f"{asked}")
    def test_an_answer_keeps_the_contract(self, open_teacher: OpenTeacher, asked: int | None) -> None:
        """With no candidates, few, and as many as declared."""

        async def question(teacher: Teacher) -> tuple[Completion, int, Capabilities]:
            most = teacher.capabilities.max_top_logprobs
            k = most if asked is None else min(asked, most)
            return await teacher.generate(self.request(top_logprobs=k)), k, teacher.capabilities

        completion, k, capabilities = self.ask(open_teacher, question)
        check_completion(completion, k, capabilities)
        assert completion.finish_reason in ("stop", "length", "content_filter", "tool_calls")
        told = completion.token_ids is not None or (completion.token_bytes or ()) != (completion.text,)
        assert not told or len(completion.token_logprobs) <= self.max_new_tokens
        if k:
            assert np.any(completion.candidate_counts > 0), f"{k} candidates a position were asked for: none came"

    def test_sampling_is_taken(self, open_teacher: OpenTeacher) -> None:
        """With a top-p and a seed, where it declares to know them."""

        async def question(teacher: Teacher) -> Completion:
            can = teacher.capabilities
            known: dict[str, Any] = ({"top_p": 0.9} if can.top_p else {}) | ({"seed": 7} if can.seed else {})
            k = min(5, can.max_top_logprobs)
            return await teacher.generate(self.request(top_logprobs=k, temperature=1.0, **known))

        assert self.ask(open_teacher, question).text

    def test_a_top_p_that_it_does_not_know_is_refused(self, open_teacher: OpenTeacher) -> None:
        """Left out silently, the answers would be drawn from another distribution than the run says."""

        async def question(teacher: Teacher) -> bool:
            if teacher.capabilities.top_p:
                return False
            with pytest.raises(ProviderError):
                await teacher.generate(self.request(temperature=1.0, top_p=0.5))
            return True

        if not self.ask(open_teacher, question):
            pytest.skip("it knows top-p")

    def test_a_seed_repeats_the_answer(self, open_teacher: OpenTeacher) -> None:
        async def question(teacher: Teacher) -> list[bytes] | None:
            if not teacher.capabilities.seed:
                return None
            request = self.request(temperature=1.0, seed=7)
            return [(await teacher.generate(request)).text for _ in range(2)]

        said = self.ask(open_teacher, question)
        if said is None:
            pytest.skip("it knows no seed")
        if self.deterministic:
            assert said[0] == said[1], "the same seed, and another answer: declare seed=False"

    def test_what_it_scores_is_what_it_generates(self, open_teacher: OpenTeacher) -> None:
        async def question(teacher: Teacher) -> tuple[Capabilities, Any]:
            if not teacher.capabilities.scoring:
                with pytest.raises(ProviderError):
                    await teacher.score(ScoreRequest("Paris.", 0))
                return teacher.capabilities, None
            k = min(5, teacher.capabilities.max_top_logprobs)
            scored = await teacher.score(ScoreRequest("The capital of France is Paris.", k))
            verdict = await probe_teacher(teacher, self.plugin_name) if self.has_a_model else None
            return teacher.capabilities, (scored, k, verdict)

        capabilities, found = self.ask(open_teacher, question)
        if found is None:
            return
        scored, k, verdict = found
        check_completion(scored, k, capabilities)
        assert scored.finish_reason == "scored"
        assert scored.text.startswith(b"The capital of France is Paris.")
        if verdict is None:
            return
        if verdict.scoring == "unclear":
            pytest.skip(verdict.scoring_words)
        assert verdict.scoring == "agrees", verdict.scoring_words

    def test_the_probe_trusts_its_candidates(self, open_teacher: OpenTeacher) -> None:
        """And finds what the teacher declares."""
        if not self.has_a_model:
            pytest.skip("there is no model behind the server")

        async def question(teacher: Teacher) -> tuple[Capabilities, Any]:
            if not teacher.capabilities.max_top_logprobs:
                return teacher.capabilities, None
            return teacher.capabilities, await probe_teacher(teacher, self.plugin_name)

        capabilities, verdict = self.ask(open_teacher, question)
        if verdict is None:
            pytest.skip("it declares no candidates")
        assert verdict.trusted_for_kd, verdict.reasons
        claimed = capabilities.logprobs_before_temperature
        if claimed is not None and verdict.temperature != "unknown":
            assert (verdict.temperature == "before") == claimed, verdict.notes

    # Many at once, stopping, closing

    def test_answers_of_many_at_once_are_not_mixed_up(self, open_teacher: OpenTeacher) -> None:
        texts = [f"Say the number {number}" + " and nothing else" * (number % 3) for number in range(8)]

        async def question(teacher: Teacher) -> tuple[list[Completion], list[Completion], list[int]]:
            most = teacher.capabilities.max_top_logprobs
            asked = [min(number % 3, most) for number in range(len(texts))]
            requests = [
                self.request(text, k, max_new_tokens=2 + number % 4)
                for number, (text, k) in enumerate(zip(texts, asked, strict=True))
            ]
            together = await asyncio.gather(*map(teacher.generate, requests))
            return together, [await teacher.generate(each) for each in requests], asked

        together, alone, asked = self.ask(open_teacher, question)
        for number, (one, other, k) in enumerate(zip(together, alone, asked, strict=True)):
            assert one.prompt_tokens == other.prompt_tokens, f"answer {number} is another request's"
            assert np.all(one.candidate_counts <= k), f"answer {number} is another request's"
            if self.deterministic:
                assert one.text == other.text, f"answer {number} is another request's"

    @pytest.mark.parametrize("after_s", [0.0, 0.01, 0.1])
    def test_a_cancelled_call_leaves_it_usable(self, open_teacher: OpenTeacher, after_s: float) -> None:
        async def question(teacher: Teacher) -> Completion:
            call = asyncio.ensure_future(teacher.generate(self.request("Count to one hundred.")))
            await asyncio.sleep(after_s)
            call.cancel()
            await asyncio.wait([call], timeout=self.timeout_s / 2)
            assert call.done(), "a cancelled call goes on"
            assert call.cancelled() or call.exception() is None
            return await teacher.generate(self.request())

        assert self.ask(open_teacher, question).text is not None

    def test_closing_twice_is_closing_once_and_a_closed_one_says_so(self, open_teacher: OpenTeacher) -> None:
        async def question(teacher: Teacher) -> None:
            await teacher.generate(self.request())
            await teacher.aclose()
            await teacher.aclose()
            with pytest.raises(ProviderError):
                await teacher.generate(self.request())

        self.ask(open_teacher, question)

    # Faults and secrets

    @pytest.mark.parametrize("fault", get_args(Fault))
    def test_a_fault_becomes_the_contracts_error(
        self, open_teacher: OpenTeacher, break_server: BreakServer | None, fault: Fault
    ) -> None:
        if break_server is None:
            pytest.skip("there is no server to break: override the fixture break_server")
        breaking = break_server

        async def question(teacher: Teacher) -> ProviderError:
            breaking(fault)
            with pytest.raises(ProviderError) as caught:
                await teacher.generate(self.request())
            breaking(None)
            await teacher.generate(self.request())  # it is usable afterwards
            return caught.value

        error = self.ask(open_teacher, question)
        assert wrong_with(error, fault) is None, wrong_with(error, fault)
        shown = "".join(traceback.format_exception(error))
        assert self.canary not in shown, "the key is in the error"

    def test_the_key_turns_up_nowhere(
        self,
        open_teacher: OpenTeacher,
        options: Any,
        caplog: pytest.LogCaptureFixture,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        caplog.set_level(logging.DEBUG)

        async def question(teacher: Teacher) -> list[str]:
            completion = await teacher.generate(self.request())
            return [repr(teacher), str(dict(teacher.description)), repr(teacher.capabilities), repr(completion)]

        shown = self.ask(open_teacher, question)
        printed = capfd.readouterr()
        for text in (*shown, repr(options), caplog.text, printed.out, printed.err):
            assert self.canary not in text

    def test_it_stays_on_this_machine(self, open_teacher: OpenTeacher, stays_on_this_machine: list[str]) -> None:
        """What declares that it is not external answers without a network; others talk to their test server only."""

        async def question(teacher: Teacher) -> bool:
            await teacher.generate(self.request())
            return teacher.capabilities.external

        external = self.ask(open_teacher, question)
        assert not (external is False and self.network_allowed), "a teacher on this machine needs no network"
        assert stays_on_this_machine == []


def check_completion(completion: Completion, asked: int, capabilities: Capabilities) -> None:
    """Assert what the contract says of one answer that was asked for `asked` candidates a position."""
    positions, candidates = len(completion.token_logprobs), int(np.sum(completion.candidate_counts))
    assert isinstance(completion.text, bytes)
    assert completion.model, "model: the name that the provider returned"
    assert completion.prompt_tokens >= 0
    assert completion.latency_s >= 0
    assert len(completion.candidate_counts) == positions
    assert len(completion.candidate_logprobs) == candidates
    assert completion.token_ids is not None or completion.token_bytes is not None, "tokens have ids or bytes"
    for name, expected in (
        ("token_ids", positions),
        ("token_bytes", positions),
        ("candidate_ids", candidates),
        ("candidate_bytes", candidates),
    ):
        column = getattr(completion, name)
        assert column is None or len(column) == expected, f"{name} has {len(column)} entries, not {expected}"
    known = completion.token_logprobs[~np.isnan(completion.token_logprobs)]
    assert np.all(known <= 1e-3), "a token's log-probability is above 0"
    assert np.all(np.isfinite(known)), "unknown log-probabilities are NaN"
    assert np.all(known > -9000), "a sentinel is unknown: NaN"
    seen = inspect_answer(completion, asked)
    assert (*faults(seen), *without_value(seen)) == ()
    if candidates:
        assert completion.candidate_ids is not None or not capabilities.token_ids, "token_ids is declared"
        assert completion.candidate_bytes is not None or not capabilities.token_bytes, "token_bytes is declared"
    if asked:
        assert asked <= capabilities.max_top_logprobs
    for count in (*completion.usage.values(), *completion.repairs.values()):
        assert count >= 0
