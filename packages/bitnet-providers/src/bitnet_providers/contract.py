"""What a teacher is: requests go in, columnar completions come out.

An author writes two things (docs/write-a-provider.md does it step by step):

1. A `TeacherPlugin` with its `Capabilities`, which the hook `bitnet_teachers` returns. It is listed without an SDK.
2. A class with what `Teacher` has: ``generate`` takes a `GenerateRequest`, ``score`` a `ScoreRequest`; each gives a
   `Completion`, or raises a `ProviderError`: `RetryableError` where the same request may be answered later,
   `RequestRefusedError` where this one never will be.

`bitnet_providers.testing` checks both.

Log-probabilities are in nats. A value that the provider doesn't give is NaN; it is never made up.
Shapes: T positions of the response, C candidates over all positions (ragged; `candidate_counts` has each one's number).
A class's fields are told in its docstring, where pydoc shows them.
"""

from __future__ import annotations  # signatures stay as short as they are written

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import attrs
import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Capabilities",
    "Completion",
    "GenerateRequest",
    "ProviderError",
    "RequestRefusedError",
    "RetryableError",
    "SampledTarget",
    "Sampling",
    "ScoreRequest",
    "Teacher",
    "TeacherPlugin",
    "TemperedTarget",
    "servers_of",
    "template_of",
]

Message = Mapping[str, str]
"""``{"role": "system" | "user" | "assistant", "content": text}``"""


@attrs.frozen
class Capabilities:
    """What a teacher can give; the collector plans by it and a run says what is missing.

    max_top_logprobs: Candidates per position at most; 0: none (sequence-level traces only).
    token_ids: Candidates carry ids of a vocabulary whose tokenizer can be had as a local folder.
    token_bytes: Candidates carry their bytes.
    scoring: `score` gives log-probabilities for a given text.
    external: A call leaves this machine or costs money; refused when SKIP_EXTERNAL=1.
    logprobs_before_temperature: Log-probabilities are the model's own, before temperature and top-p; None: not known
        before the probe has asked.
    paced: Requests are paced and retried by the collector (a server); False: it batches what waits (a model here).
    chat: Conversations go through a chat template; False: a base model, which goes on with a prompt as plain text.
    whole_distribution: It sees every token's probability, so it can be asked for a `Target` (docs/targets.md).
    top_p: `Sampling.top_p` is obeyed; False: its API knows none, and a request with another than 1 is refused.
    seed: `Sampling.seed` is obeyed; False: its API knows none, and the same request may be answered otherwise.
    """

    max_top_logprobs: int
    token_ids: bool
    token_bytes: bool
    scoring: bool
    external: bool
    logprobs_before_temperature: bool | None = True
    paced: bool = True
    chat: bool = True
    whole_distribution: bool = False
    top_p: bool = True
    seed: bool = True


@attrs.frozen
class Sampling:
    """How tokens are drawn.

    temperature: 0 is greedy.
    top_p: Only the likeliest tokens that hold this much probability together; 1: all.
    max_new_tokens: The longest answer, its end-of-turn token counted.
    seed: The same seed draws the same answer, where the teacher knows one.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 64
    seed: int = 0


@attrs.frozen
class SampledTarget:
    """Instead of the top K: draws out of the whole distribution p, before temperature (docs/targets.md).

    The candidates are the distinct tokens drawn; `Completion.log_z` and `Completion.entropy` belong to them.

    draws: How many at each position.
    draw_temperature: t: tokens are drawn in proportion to p^t.
    seed: The same seed draws the same tokens.
    """

    draws: int
    draw_temperature: float = 1.0
    seed: int = 0


@attrs.frozen
class TemperedTarget:
    """Beside the top K: log Z = log Σ p^(1/τ) over the whole vocabulary, as `Completion.log_z`.

    tau: The temperature τ.
    """

    tau: float


Target = SampledTarget | TemperedTarget


@attrs.frozen
class GenerateRequest:
    """Ask for one completion of a conversation.

    messages: The turns so far, each ``{"role": "system" | "user" | "assistant", "content": text}``.
    sampling: How its tokens are drawn.
    top_logprobs: Candidates asked for per position; 0: none.
    target: Only for a teacher with ``capabilities.whole_distribution``.
    """

    messages: tuple[Message, ...]
    sampling: Sampling
    top_logprobs: int
    target: Target | None = None


@attrs.frozen
class ScoreRequest:
    """Ask how likely each token of `text` is: as the assistant's answer to `messages`, or, with none, as plain text.

    text: What is scored.
    top_logprobs: As in `GenerateRequest`.
    messages: What `text` answers.
    max_tokens: Tokens of `text` scored at most; the rest is cut.
    target: As in `GenerateRequest`.
    """

    text: str
    top_logprobs: int
    messages: tuple[Message, ...] = ()
    max_tokens: int | None = None
    target: Target | None = None


@attrs.frozen(eq=False)
class Completion:
    """What the teacher said, in its own tokens.

    A teacher that tells no tokens gives one: the whole text, its log-probability NaN, without candidates (T = 1).

    text: The response's bytes (generated or scored), without the prompt; the end-of-turn token has its bytes here
        too.
    token_logprobs: [T] log-probability of each token that stands there; NaN: unknown (the first token of a plain
        text).
    candidate_counts: [T] how many of the candidates below belong to each position; 0 where there are none.
    candidate_logprobs: [C] log-probabilities, descending within a position.
    finish_reason: Why it ended: "stop" (the model ended it), "length" (`max_new_tokens` did), "scored" (of `score`),
        "content_filter", "tool_calls".
    model: The model's name as the provider returned it.
    prompt_tokens: Tokens of the prompt as the teacher counted them.
    latency_s: Wall seconds from sending the request to its last token (a batch's requests share the batch's time).
    token_ids: [T] ids in the teacher's own vocabulary.
    prompt_ids: Ids of the prompt as the teacher read it, template included; of a plain text the begin token, if any.
    token_bytes: [T] what each token stands for.
    candidate_ids: [C] as `token_ids`.
    candidate_bytes: [C] as `token_bytes`.
    usage: What the provider says it counted, in its own words: ``prompt_tokens``, ``completion_tokens`` (both are
        billed), ``reasoning_tokens``, ``cached_tokens``; and, where it tells its own clock, ``prompt_s`` and
        ``decode_s``.
    repairs: What was not as documented and how often, by a short name: ``sentinels``, ``bytes_rebuilt``,
        ``bytes_unknown``, ``duplicates``, ``sampled_outside``, ``logprobs_missing`` (positions without any),
        ``reasoning_dropped`` ...
    log_z: [T] where a target was asked for; NaN at a position without candidates. `TemperedTarget`: log Σ p^(1/τ),
        nats. `SampledTarget`: log of the draws' total weight; a candidate's weight is exp(log_z +
        candidate_logprob).
    entropy: [T] for a `SampledTarget`: entropy of the whole distribution, nats; NaN at a position without
        candidates.
    """

    text: bytes
    token_logprobs: NDArray[np.float32]
    candidate_counts: NDArray[np.int32]
    candidate_logprobs: NDArray[np.float32]
    finish_reason: Literal["stop", "length", "scored", "content_filter", "tool_calls"]
    model: str
    prompt_tokens: int
    latency_s: float
    token_ids: NDArray[np.int32] | None = None
    prompt_ids: NDArray[np.int32] | None = None
    token_bytes: tuple[bytes, ...] | None = None
    candidate_ids: NDArray[np.int32] | None = None
    candidate_bytes: tuple[bytes, ...] | None = None
    usage: Mapping[str, float] = attrs.field(factory=dict)
    repairs: Mapping[str, int] = attrs.field(factory=dict)
    log_z: NDArray[np.float32] | None = None
    entropy: NDArray[np.float32] | None = None


class Teacher(Protocol):
    """An open teacher. Calls may run concurrently; a local one batches those that wait together."""

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def description(self) -> Mapping[str, Any]:
        """What goes into reports and shard metadata (plain JSON values, no secrets).

        ``model`` (name); where known ``dtype``, ``device``, ``memory_bytes`` (weights as loaded), ``vocab_size``,
        ``tokenizer_sha256``, ``template_sha256``. What changes it makes another teacher of it: its verdict and its
        baseline are asked for again. ``fingerprint`` (of which weights, of an option): what decides an answer beside
        ``model`` and the request. Answers of one with another ``model`` or ``fingerprint`` are never taken for this
        one's. A template's text is no part of it: see `template_of`.
        """
        ...

    async def generate(self, request: GenerateRequest) -> Completion:
        """One answer, asked for once: no retries in here, the caller paces them. Raises ProviderError and its kinds."""
        ...

    async def score(self, request: ScoreRequest) -> Completion:
        """As `generate`, where `capabilities.scoring`; ProviderError where not."""
        ...

    async def aclose(self) -> None:
        """Let everything go. Closing twice is closing once; a call after it raises ProviderError."""
        ...


def template_of(teacher: Teacher) -> str | None:
    """The text of the chat template that the teacher puts conversations into, from its attribute ``chat_template``.

    None where it has no such attribute (a server keeps its template to itself) or no template.
    """
    template: str | None = getattr(teacher, "chat_template", None)
    return template


def servers_of(teacher: Teacher) -> Sequence[Teacher]:
    """The servers that are behind the teacher, from its attribute ``servers``; itself alone where it has none.

    Each gives what the others give: a collection deals its requests among them, each at its own pace.
    """
    servers: Sequence[Teacher] = getattr(teacher, "servers", ())
    return servers or (teacher,)


_DRIVES_A_TERMINAL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters, and those that turn a line around: a message may quote a server, or a file that was brought."""


class ProviderError(Exception):
    """A teacher could not do what was asked. As it stands: nothing else will work.

    `why`: what is wrong, and where. `fix`: what to do about it, as an imperative; "" where nothing is known to help.
    """

    def __init__(self, why: str, fix: str = "") -> None:
        super().__init__(why, fix)
        self.why = _DRIVES_A_TERMINAL.sub("\ufffd", why)
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.why}  → {self.fix}" if self.fix else self.why


class RequestRefusedError(ProviderError):
    """This request will never be answered (a malformed request, a content filter); others may."""


class RetryableError(ProviderError):
    """The same request may be answered later (429, 5xx, a cut connection, a timeout).

    `retry_after_s`: how long the server asked to wait. `overloaded`: the server said that we ask too much (429): fewer
    at once. `possibly_paid`: the request was sent whole, and its answer never came. `answered`: the server is there and
    answered, but with nothing, or it broke the answer off.
    """

    def __init__(
        self,
        why: str,
        fix: str = "",
        *,
        retry_after_s: float | None = None,
        overloaded: bool = False,
        possibly_paid: bool = False,
        answered: bool = False,
    ) -> None:
        super().__init__(why, fix)
        self.retry_after_s = retry_after_s
        self.overloaded = overloaded
        self.possibly_paid = possibly_paid
        self.answered = answered


MOST_TOKENS = 2**31 - 1
"""No request has more; what is written down has room for so many."""


def is_count(value: Any) -> bool:
    """Whether a provider's figure (tokens, seconds) can be one: a number, finite, not negative, not absurd."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS


def with_counts_mended(completion: Completion) -> Completion:
    """Without the provider's counts where they can't be any; ``repairs`` then says ``usage_unbelievable``.

    What such a request took is not known: it is charged at its worst case.
    """
    usage = {name: value for name, value in completion.usage.items() if is_count(value)}
    fields = {"prompt_tokens": completion.prompt_tokens, "latency_s": completion.latency_s}
    wrong: dict[str, Any] = {
        name: 0 for name, value in fields.items() if not is_count(value) and value == value
    }  # NaN: not known
    if len(usage) == len(completion.usage) and not wrong:
        return completion
    repairs = {**completion.repairs, UNBELIEVABLE: len(completion.usage) - len(usage) + len(wrong)}
    return attrs.evolve(completion, usage=usage, repairs=repairs, **wrong)


UNBELIEVABLE = "usage_unbelievable"


def check_answer(completion: Completion) -> None:
    """Raises RetryableError for an answer without a text and without a token, RequestRefusedError for thoughts alone.

    One that a filter cut, or that is a tool call, is an answer.
    """
    finish = completion.finish_reason
    if completion.text or len(completion.token_logprobs) or finish in ("content_filter", "tool_calls"):
        return
    # Hosted models keep their thoughts to themselves, and charge for them.
    in_thought = finish == "length" and completion.usage.get("reasoning_tokens")
    if completion.repairs.get("reasoning_dropped") or in_thought:
        raise RequestRefusedError(
            "the answer ended within its thoughts (max_new_tokens is too low)",
            "raise max_new_tokens, or have the model think less",
        )
    raise RetryableError(f"the answer is empty (finish reason {finish})", "see that the server is well", answered=True)


@attrs.frozen
class TeacherPlugin:
    """What a plugin says of a teacher, light enough to list.

    name: The manifest's ``teacher.kind``.
    options: A frozen attrs class, its fields made with `bitnet_providers.settings.setting`; the manifest's
        ``[teacher]`` table without ``kind`` becomes one.
    capabilities: What it gives as a rule; see `capabilities_of`.
    open: Options in, open teacher out; raises ProviderError. Imports the SDK here, not before.
    summary: What it is, in a line.
    requires: Modules that `open` imports; a missing one is reported by `bitnet plugins` with `install`.
    install: The command that brings what `requires` names, e.g. ``pip install 'bitnet-providers[local]'``.
    model_folder: Options in, a Hugging Face folder with the teacher's weights and tokenizer out, where the teacher
        has one.
    check: Options in, what is wrong with them out (a missing file, an unset key), each with its fix or as a plain
        text: cheap, no network; `bitnet plan` asks.
    capabilities_of: Options in, what a teacher with them can give (a server on this machine is not external), where
        that depends on them; no network. `capabilities_with` asks it.
    api_version: That of the hooks which it was written for.
    """

    name: str
    options: type
    capabilities: Capabilities
    open: Callable[[Any], Teacher]
    summary: str = ""
    requires: tuple[str, ...] = ()
    install: str = ""
    model_folder: Callable[[Any], Path] | None = None
    check: Callable[[Any], Sequence[ProviderError | str]] | None = None
    capabilities_of: Callable[[Any], Capabilities] | None = None
    api_version: int = 1

    def capabilities_with(self, options: Any) -> Capabilities:
        """What a teacher with these options can give, before it is opened."""
        return self.capabilities if self.capabilities_of is None else self.capabilities_of(options)
