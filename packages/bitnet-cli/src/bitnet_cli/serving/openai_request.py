"""From a request's JSON to what the model is asked, or to OpenAI's error: all is checked before it waits in line."""

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from bitnet_cli.errors import Problem
from bitnet_cli.wording.did_you_mean import nearest
from bitnet_core.runtime.contract import Message, Prompt, Sampling


@attrs.frozen
class ApiError(Exception):
    """Something for the client, with an HTTP status."""

    status: int
    why: str
    fix: str = ""
    param: str | None = None
    """The request's field that it is about."""
    code: str | None = None
    """A short name for programs, such as ``invalid_value``."""
    retry_after_s: int | None = None

    @property
    def kind(self) -> str:
        match self.status:
            case 401 | 403:
                return "authentication_error"
            case 429:
                return "rate_limit_error"
            case status if status >= 500:
                return "server_error"
        return "invalid_request_error"

    def body(self) -> dict[str, Any]:
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}

    def __str__(self) -> str:
        return str(Problem(self.why, self.fix))


class Fields:
    """Each field may be null or absent: then the default counts. Every method raises ApiError (400)."""

    def __init__(self, body: object, where: str = "") -> None:
        """`where`: the path of this object in the request, with a dot at its end."""
        if not isinstance(body, Mapping):
            raise ApiError(400, f"{where.rstrip('.') or 'the body'}: expected a JSON object", "send one")
        self._left = {name: value for name, value in body.items() if value is not None}
        self._known: list[str] = []
        self._where = where

    def take(self, name: str) -> Any:
        """The value as it came; None where there is none."""
        self._known.append(name)
        return self._left.pop(name, None)

    def number(self, name: str, default: float, least: float, most: float) -> float:
        value = self.take(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise self.refused(name, f"expected a number from {least:g} to {most:g}")
        return float(value)

    def integer(self, name: str, least: int, most: int) -> int | None:
        value = self.take(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.refused(name, f"expected a whole number from {least} to {most}")
        return value

    def flag(self, name: str) -> bool:
        value = self.take(name)
        if value is not None and not isinstance(value, bool):
            raise self.refused(name, "expected true or false")
        return bool(value)

    def text(self, name: str) -> str | None:
        value = self.take(name)
        return None if value is None else self.as_text(name, value)

    def as_text(self, name: str, value: object) -> str:
        if not isinstance(value, str):
            raise self.refused(name, "expected a text")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self.refused(name, "holds half a surrogate pair, which is no character", "leave it out") from None
        return value

    def only(self, allowed: Mapping[str, Sequence[Any]]) -> None:
        """Fields that may be sent, but only with the values that change nothing here."""
        for name, values in allowed.items():
            value = self.take(name)
            if value is not None and value not in values:
                values_text = " or ".join(repr(each) for each in values)
                raise self.refused(
                    name, f"this server only takes {values_text}", "leave it out", code="unsupported_parameter"
                )

    def ignore(self, *names: str) -> None:
        for name in names:
            self.take(name)

    def end(self) -> None:
        """Raises ApiError where something unknown is left."""
        for name in self._left:
            near = nearest(name, self._known)
            fix = "leave it out" if near is None else f'did you mean "{near}"?'
            raise self.refused(name, "unknown field", fix, code="unknown_parameter")

    def refused(self, name: str, why: str, fix: str = "", code: str = "invalid_value") -> ApiError:
        return ApiError(400, f"{self._where}{name}: {why}", fix, f"{self._where}{name}", code)


MAX_TOP_LOGPROBS = 20
"""As OpenAI's."""
MAX_STOP = 16
MAX_STOP_LENGTH = 1000
"""Characters."""
MAX_PROMPT = 1_000_000
"""Characters, before anything is tokenised; the model's own context is checked then."""
MAX_MESSAGES = 4096
_COUNT = 2**31 - 1
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""OpenAI's newer name for a system message counts as one."""

_CHANGES_NOTHING: dict[str, Sequence[Any]] = {
    "n": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "top_k": (0, -1),
    "min_p": (0,),
    "typical_p": (1,),
    "repetition_penalty": (1,),
    "repeat_penalty": (1,),
}
_CHAT_ONLY: dict[str, Sequence[Any]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
}
_TEXT_ONLY: dict[str, Sequence[Any]] = {"best_of": (1,), "echo": (False,), "suffix": ("",)}
_BOOKKEEPING = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")


@attrs.frozen(kw_only=True)
class Asked:
    """A request that can be answered."""

    prompt: Prompt
    sampling: Sampling
    model: str | None
    """As the client names it."""
    stream: bool
    include_usage: bool
    """At the end of a stream."""


def read_chat(body: object, default_tokens: int) -> Asked:
    """A chat completion; at most `default_tokens` where it doesn't say. Raises ApiError (400)."""
    fields = Fields(body)
    messages = _messages(fields)
    most = fields.integer("max_completion_tokens", 1, _COUNT)
    legacy_most = fields.integer("max_tokens", 1, _COUNT)  # the older name of the same
    wanted = fields.flag("logprobs")
    top = fields.integer("top_logprobs", 0, MAX_TOP_LOGPROBS)
    if top is not None and not wanted:
        raise fields.refused("top_logprobs", "needs logprobs beside it", "add logprobs: true")
    fields.only(_CHAT_ONLY)
    return _asked(fields, messages, most or legacy_most or default_tokens, (top or 0) if wanted else None)


def read_completion(body: object, default_tokens: int) -> Asked:
    """A legacy completion, which goes on with a text as it stands. Raises ApiError (400)."""
    fields = Fields(body)
    prompt = fields.take("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        (prompt,) = prompt
    if not isinstance(prompt, str):
        raise fields.refused("prompt", "expected one text (lists of texts or of token ids are not taken)")
    prompt = fields.as_text("prompt", prompt)
    if not prompt:
        raise fields.refused("prompt", "is empty", "write something")
    _check_size(fields, "prompt", len(prompt))
    most = fields.integer("max_tokens", 1, _COUNT)
    top = fields.integer("logprobs", 0, MAX_TOP_LOGPROBS)
    fields.only(_TEXT_ONLY)
    return _asked(fields, prompt, most or default_tokens, top)


def _asked(fields: Fields, prompt: Prompt, max_new_tokens: int, top_logprobs: int | None) -> Asked:
    seed = fields.integer("seed", -(2**63), 2**64 - 1)
    stream = fields.flag("stream")
    given = fields.take("stream_options")
    options = Fields({} if given is None else given, "stream_options.")
    include_usage = options.flag("include_usage")
    options.ignore("include_obfuscation")
    options.end()
    asked = Asked(
        prompt=prompt,
        model=fields.text("model"),
        stream=stream,
        include_usage=stream and include_usage,
        sampling=Sampling(
            max_new_tokens=max_new_tokens,
            temperature=fields.number("temperature", 1.0, 0.0, 2.0),
            top_p=fields.number("top_p", 1.0, 1e-6, 1.0),
            seed=secrets.randbits(32) if seed is None else seed % 2**32,
            stop=_stop(fields),
            top_logprobs=top_logprobs,
        ),
    )
    fields.only(_CHANGES_NOTHING)
    fields.ignore(*_BOOKKEEPING)
    fields.end()
    return asked


def _stop(fields: Fields) -> tuple[str, ...]:
    given = fields.take("stop")
    every = [] if given is None else given if isinstance(given, list) else [given]
    if len(every) > MAX_STOP or "" in every:
        raise fields.refused("stop", f"expected a text or at most {MAX_STOP} of them, none of them empty")
    stop = tuple(fields.as_text("stop", each) for each in every)
    if any(len(each) > MAX_STOP_LENGTH for each in stop):
        raise fields.refused("stop", f"expected at most {MAX_STOP_LENGTH:,} characters in each")
    return stop


def _messages(fields: Fields) -> list[Message]:
    given = fields.take("messages")
    if not isinstance(given, list) or not given:
        raise fields.refused("messages", "expected a list of at least one message")
    if len(given) > MAX_MESSAGES:
        raise fields.refused("messages", f"expected at most {MAX_MESSAGES:,} of them")
    messages = [_message(each, f"messages[{index}].") for index, each in enumerate(given)]
    _check_size(fields, "messages", sum(len(each["content"]) for each in messages))
    return messages


def _check_size(fields: Fields, name: str, characters: int) -> None:
    if characters > MAX_PROMPT:
        raise fields.refused(name, f"{characters:,} characters, at most {MAX_PROMPT:,} are taken", "make it shorter")


def _message(given: object, where: str) -> Message:
    fields = Fields(given, where)
    role, content = fields.take("role"), fields.take("content")
    if not isinstance(role, str) or role not in _ROLES:
        raise fields.refused("role", f"expected one of {', '.join(_ROLES)} (tools are not taken)")
    if isinstance(content, list):
        content = "".join(_part(each, f"{where}content[{index}].") for index, each in enumerate(content))
    fields.ignore("name", "refusal")
    fields.only({"tool_calls": ([],)})
    fields.end()
    return {"role": _ROLES[role], "content": fields.as_text("content", content)}


def _part(given: object, where: str) -> str:
    fields = Fields(given, where)
    if fields.take("type") != "text":
        raise fields.refused("type", "this server takes no images, audio or files", 'send "text"')
    return fields.as_text("text", fields.take("text"))
