"""How many tokens a request takes: at most (before it is sent), about (for an estimate), and as counted afterwards."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from bitnet_providers.contract import Completion, GenerateRequest, ScoreRequest, is_count

TEMPLATE_TOKENS = 256
"""For what a server's chat template adds once, a system prompt of its own included."""
MESSAGE_TOKENS = 16
"""For what it adds around each message."""
BYTES_PER_TOKEN = 4
"""Of English text, about."""


@attrs.frozen
class Tokens:
    """What providers bill: prompt tokens and completion tokens."""

    input: int = 0
    output: int = 0

    @property
    def total(self) -> int:
        return self.input + self.output

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(self.input + other.input, self.output + other.output)

    def __sub__(self, other: "Tokens") -> "Tokens":
        return Tokens(self.input - other.input, self.output - other.output)


NO_TOKENS = Tokens()


def at_most(request: GenerateRequest | ScoreRequest) -> Tokens:
    """The worst case, without the teacher's tokenizer.

    A token stands for at least one byte of UTF-8 in every tokenizer that doesn't make text longer first, so a text has
    no more tokens than bytes. A scored text is input; servers generate one token with it.
    """
    prompt = _bytes(request) + TEMPLATE_TOKENS + MESSAGE_TOKENS * len(request.messages)
    return Tokens(prompt, request.sampling.max_new_tokens if isinstance(request, GenerateRequest) else 1)


def about(request: GenerateRequest | ScoreRequest, answer_tokens: float | None) -> Tokens:
    """A guess at what it will be; `answer_tokens` is the mean of the answers so far (None: there are none yet)."""
    prompt = _bytes(request) // BYTES_PER_TOKEN + 4 * (len(request.messages) + 1)
    if isinstance(request, ScoreRequest):
        return Tokens(prompt, 1)
    most = request.sampling.max_new_tokens
    return Tokens(prompt, most if answer_tokens is None else min(most, round(answer_tokens)))


def counted(completion: Completion, bound: Tokens) -> Tokens:
    """What the provider says that it counted, else what came; `bound` (`at_most`) where neither tells."""
    return from_usage(
        completion.usage,
        completion.prompt_tokens,
        told_tokens(completion.token_logprobs),
        bound,
        scored=completion.finish_reason == "scored",
    )


def told_tokens(token_logprobs: Sequence[float] | NDArray[np.float32]) -> int | None:
    """How many tokens an answer has; None: it came as a text, which stands there as one token."""
    count = len(token_logprobs)
    return None if count == 1 and math.isnan(token_logprobs[0]) else count


def from_usage(
    usage: Mapping[str, Any], prompt_tokens: int, response_tokens: int | None, bound: Tokens, *, scored: bool
) -> Tokens:
    """`response_tokens`: None where they are not told."""
    if scored:
        prompt, response = prompt_tokens + (response_tokens or 1), 0
    else:
        prompt = prompt_tokens or bound.input  # a prompt has tokens
        response = bound.output if response_tokens is None else response_tokens
    # Some servers write 0 where they don't count.
    said = {name: int(value) for name, value in usage.items() if is_count(value)}
    return Tokens(said.get("prompt_tokens") or prompt, said.get("completion_tokens") or response)


def _bytes(request: GenerateRequest | ScoreRequest) -> int:
    text = request.text if isinstance(request, ScoreRequest) else ""
    return len(text.encode()) + sum(len(message["content"].encode()) for message in request.messages)
