"""A stream of events put together to the response that it would have been in one piece."""

from codecs import BOM_UTF8
from collections.abc import AsyncIterator

import attrs
import msgspec

from bitnet_providers.teachers.common.logprobs import Logprobs, token_list
from bitnet_providers.teachers.common.token_bytes import Token
from bitnet_providers.teachers.openai_compatible.answer import Choice, Message, Part, Response, decode


@attrs.define
class Assembly:
    """What has come so far."""

    content: list[str] = attrs.field(factory=list)
    refusal: list[str] = attrs.field(factory=list)
    thought: list[str] = attrs.field(factory=list)
    tokens: list[Token] = attrs.field(factory=list)
    refusal_tokens: list[Token] = attrs.field(factory=list)
    chosen: bool | None = None
    """Whether a choice came, or only empty lists of them; None: not even these."""
    called: bool = False
    """A tool was called."""
    finish_reason: str | None = None
    done: bool = False
    """The event ``[DONE]`` came."""
    response: Response = attrs.field(factory=Response)
    """Model, usage and timings of the events that had them."""

    def add(self, event: Response) -> None:
        for name in ("model", "usage", "timings", "error"):
            value = getattr(event, name)
            if value is not None:
                setattr(self.response, name, value)
        if event.x_groq is not None:
            self.response.usage = event.x_groq.usage or self.response.usage
            self.response.error = event.x_groq.error or self.response.error
        if event.choices is not None:
            self.chosen = bool(self.chosen or event.choices)
        for choice in event.choices or ():
            delta = choice.delta or choice.message or Message()
            if isinstance(delta.content, str):
                self.content.append(delta.content)
            else:
                parts: list[Part] = delta.content or []
                self.content += [part.text or part.refusal or "" for part in parts if part.is_spoken]
                self.thought += [part.type for part in parts if not part.is_spoken]
            self.refusal += [delta.refusal] if delta.refusal else []
            self.thought += [each for each in (delta.reasoning_content, delta.reasoning) if each]
            self.thought += ["thought"] if delta.thinking or delta.reasoning_details else []
            self.called = self.called or bool(delta.tool_calls or delta.function_call)
            self.tokens += token_list(choice.logprobs)
            if isinstance(choice.logprobs, Logprobs):
                self.refusal_tokens += choice.logprobs.refusal or []
            self.finish_reason = choice.finish_reason or self.finish_reason

    @property
    def whole(self) -> bool:
        """Whether the stream came to its end, rather than broke off."""
        return self.done or self.finish_reason is not None

    def put_together(self) -> Response:
        message = Message(
            content="".join(self.content),
            refusal="".join(self.refusal) or None,
            reasoning_content="".join(self.thought) or None,
            tool_calls=[{}] if self.called else None,
        )
        logprobs = Logprobs(content=self.tokens or None, refusal=self.refusal_tokens or None)
        choice = Choice(message=message, logprobs=logprobs, finish_reason=self.finish_reason)
        self.response.choices = None if self.chosen is None else [choice] * self.chosen
        return self.response


async def assemble(pieces: AsyncIterator[bytes], assembly: Assembly) -> None:
    """Read server-sent events (their ``data``, on one line or several) into `assembly`, to the end of the body.

    Not only to ``[DONE]``: a connection with something unread on it can't carry the next request.
    Raises as `decode` does, and what `pieces` raises.
    """
    begun = b""  # the lines of an event that are no whole JSON yet
    async for line in lines(pieces):
        if line.startswith(b"data:"):
            begun = b"\n".join(filter(None, (begun, line[5:].strip())))
            try:  # at once: some servers leave out the empty line between two events
                _read(begun, assembly)
            except msgspec.ValidationError:
                raise
            except (ValueError, msgspec.DecodeError):
                continue
            begun = b""
        elif not line and begun:
            _read(begun, assembly)
        # Comments keep the connection alive; events have no names that matter.
    _read(begun, assembly)


def _read(data: bytes, assembly: Assembly) -> None:
    assembly.done = assembly.done or data == b"[DONE]"
    if data and not assembly.done:
        assembly.add(decode(data))


async def lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The lines of a stream of events, which end at CR, LF or both: JSON may hold U+2028, U+0085 and their like as they
    are (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""
    rest, begins = b"", True
    async for piece in pieces:
        text = rest + piece
        if begins and len(text) < len(BOM_UTF8):
            rest = text
            continue
        text, begins = text.removeprefix(BOM_UTF8) if begins else text, False
        # A CR at the end may be half of a CR LF.
        *whole, rest = text.removesuffix(b"\r").replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        rest += b"\r" if text.endswith(b"\r") else b""
        for line in whole:
            yield line
    yield rest.removesuffix(b"\r")
