"""A token of an answer and its candidates, as every hosted API's answer is read into."""

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    ByteList = msgspec.Raw | list[int] | None
else:
    ByteList = msgspec.Raw


class Candidate(msgspec.Struct, gc=False):
    """One token with its log-probability."""

    token: str = ""
    logprob: float | None = None
    bytes: ByteList = None
    """A JSON list of numbers or null, unread; a plain list or None in records made by hand."""
    id: int | None = None
    """llama.cpp"""


class Token(Candidate, gc=False):
    """A position of ``logprobs.content``."""

    top_logprobs: list[Candidate] | None = None
