"""What a runtime is. Importing this loads no torch.

A runtime has a model loaded and answers one conversation at a time; what it is asked comes from the caller each time.
"""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import attrs

from bitnet_core.errors import CoreError

if TYPE_CHECKING:
    from torch import Tensor

Message = Mapping[str, str]
"""``{"role": "system" | "user" | "assistant", "content": text}``"""
Prompt = Sequence[Message] | str
"""A conversation, put into the chat template of the model; or a text, which the model goes on with as it stands."""
LONGEST_TOKEN = 128
"""Characters: vocabularies have runs of spaces and dashes that long, and nothing longer that matters."""
HeadKind = Literal["int8", "bf16"]
"""How the runtime ``packed`` keeps the language-model head."""


class PromptError(CoreError):
    """What was asked can't be answered; something else can."""


class RuntimeEndedError(CoreError):
    """What computes the answers has ended: nothing can be asked any more."""


def checked_size(prompt: Prompt, context: int) -> Prompt:
    """`prompt`; PromptError where it can't fit into `context` tokens however it is cut: tokenising it may take long."""
    size = len(prompt) if isinstance(prompt, str) else sum(len(message["content"]) for message in prompt)
    if size > context * LONGEST_TOKEN:
        raise PromptError(
            f"the prompt has {size:,} characters, the model's context {context:,} tokens", "make it shorter"
        )
    return prompt


@attrs.frozen(kw_only=True)
class Sampling:
    """How tokens are drawn. Raises CoreError for what makes no sense."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    """0 is greedy: `top_p` and `seed` don't count then."""
    top_p: float = 1.0
    """Only the likeliest tokens that hold this much probability together (Holtzman et al. 2020, nucleus sampling)."""
    seed: int = 0
    stop: tuple[str, ...] = ()
    """Texts that end an answer; they are no part of it."""
    top_logprobs: int | None = None
    """None: pieces come without tokens. K: with each token's log-probability, and its K likeliest candidates."""

    def __attrs_post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise CoreError(f"max_new_tokens = {self.max_new_tokens} is too low", "set it to at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise CoreError(
                f"temperature = {self.temperature} is out of range", "set it to a finite number, at least 0 (greedy)"
            )
        if not 0 < self.top_p <= 1:
            raise CoreError(f"top_p = {self.top_p} is out of range", "set it above 0, at most 1")
        if not 0 <= self.seed < 2**32:
            raise CoreError(f"seed = {self.seed} is out of range", "set it to at least 0, below 2^32")
        if "" in self.stop:
            raise CoreError("stop: an empty text would end every answer at once", "leave it out")
        if self.top_logprobs is not None and self.top_logprobs < 0:
            raise CoreError(f"top_logprobs = {self.top_logprobs} is too low", "set it to at least 0")


@attrs.frozen
class Candidate:
    """What could have come at a position."""

    id: int
    raw: bytes
    """What it stands for: perhaps a part of a UTF-8 character; a special token's name."""
    logprob: float
    """Nats, under the model's own distribution: before temperature and `top_p`."""


@attrs.frozen
class Token(Candidate):
    """What did come. NaN as its log-probability: the software doesn't tell it."""

    top: tuple[Candidate, ...] = ()
    """The likeliest ones, best first; the token itself needn't be among them."""


@attrs.frozen
class Piece:
    """A part of an answer."""

    text: str
    """Whole characters, without special tokens; "" with a token that ends an answer."""
    tokens: tuple[Token, ...] = ()
    """What the text was made of; empty unless `Sampling.top_logprobs` asks for them."""


@attrs.frozen
class Ending:
    """What is known when an answer is over."""

    reason: Literal["stop", "length"]
    """The model ended it, or `max_new_tokens` or the context did."""
    prompt_tokens: int
    tokens: int
    """New ones, the one that ends a turn among them."""


class Runtime(Protocol):
    """A loaded model. One answer at a time; a `stream` that isn't read to its end may be closed."""

    @property
    def description(self) -> str:
        """The software, where it runs, and at how many bits: what a report calls the runtime."""
        ...

    def stream(self, prompt: Prompt, sampling: Sampling) -> Generator[str, None, Ending]:
        """The answer in pieces, which put together are its text without special tokens.

        Raises PromptError: no chat template, one that refuses the conversation, a prompt longer than the context.
        Raises CoreError where the runtime itself fails; RuntimeEndedError where it will answer nothing more.
        """
        ...

    def pieces(self, prompt: Prompt, sampling: Sampling) -> Generator[Piece, None, Ending]:
        """As `stream`, with the tokens where `sampling.top_logprobs` asks for them.

        A piece may be empty: a token has come, of which nothing can be told yet.

        Raises as `stream`, and PromptError where the tokenizer doesn't say which bytes its tokens stand for.
        """
        ...


def texts(pieces: Generator[Piece, None, Ending]) -> Generator[str, None, Ending]:
    """`Runtime.stream` made of `Runtime.pieces`."""
    try:
        while True:
            try:
                piece = next(pieces)
            except StopIteration as end:
                ending: Ending = end.value
                return ending
            if piece.text:
                yield piece.text
    finally:
        pieces.close()


class ScoringRuntime(Runtime, Protocol):
    """A runtime that shows its distributions, in its own tokens: torch and packed. One call at a time."""

    @property
    def end(self) -> frozenset[int]:
        """Tokens that end an answer."""
        ...

    @property
    def context(self) -> int:
        """Tokens at most, prompt and answer together."""
        ...

    @property
    def raw(self) -> Sequence[bytes]:
        """[V] the bytes of each id. Raises CoreError where the tokenizer doesn't say them."""
        ...

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a conversation in the chat template, or of a text as it stands. Raises CoreError."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Their text, without special tokens."""
        ...

    def logits(self, ids: Sequence[int], last: int | None = None) -> "Tensor":
        """[`last` or T, V] float32 on the CPU: row t says what follows ``ids[: t + 1]``, for the last `last` positions
        or all. Where `ids` goes on from the call before, only what is new is computed.
        """
        ...


@attrs.frozen(kw_only=True)
class Answer:
    """A whole answer."""

    text: str
    reason: Literal["stop", "length"]
    prompt_tokens: int
    tokens: int
    seconds: float
    """Wall seconds, reading the prompt included."""

    def record(self) -> dict[str, Any]:
        """Plain JSON values."""
        return attrs.asdict(self)


def answer(
    runtime: Runtime, prompt: Prompt, sampling: Sampling, on_text: Callable[[str], None] = lambda piece: None
) -> Answer:
    """Read an answer to its end; `on_text` gets each piece as it comes. Raises CoreError, as `Runtime.stream`."""
    pieces: list[str] = []
    start = time.perf_counter()
    stream = runtime.stream(prompt, sampling)
    try:
        while True:
            try:
                piece = next(stream)
            except StopIteration as stop:
                ending: Ending = stop.value
                break
            pieces.append(piece)
            on_text(piece)
    finally:
        stream.close()
    return Answer(
        text="".join(pieces),
        reason=ending.reason,
        prompt_tokens=ending.prompt_tokens,
        tokens=ending.tokens,
        seconds=time.perf_counter() - start,
    )
