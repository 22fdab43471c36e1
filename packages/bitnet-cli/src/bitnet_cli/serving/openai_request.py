"""From a request's JSON to what the model is asked. Everything is checked before the request waits in line."""

import secrets
from collections.abc import Sequence
from typing import Any

import attrs

from bitnet_cli.serving.typed_json import Fields
from bitnet_core.runtime.contract import Message, Prompt, Sampling

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
