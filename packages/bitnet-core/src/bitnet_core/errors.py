"""The one exception that bitnet-core raises for what a user can fix."""

import re

_DRIVES_A_TERMINAL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters, and those that turn a line around: a message may quote a server, or a file that was brought."""


def printable(text: str) -> str:
    return _DRIVES_A_TERMINAL.sub("\ufffd", text)


class CoreError(Exception):
    """A message for people, shown without a traceback.

    why: what is wrong, and where. fix: what to do about it, as an imperative; empty where nothing is known to help.
    """

    def __init__(self, why: str, fix: str = "") -> None:
        super().__init__(why, fix)  # both, so that it can be pickled
        self.why = printable(why)
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.why}  → {self.fix}" if self.fix else self.why


def own_code_refused(where: object, error: BaseException) -> CoreError | None:
    """What to raise where transformers gave up because a folder wants Python of its own run; None for any other reason.

    Every `from_pretrained` here says trust_remote_code=False: left out, transformers asks on stdin.
    """
    if "trust_remote_code" not in str(error):
        return None
    return CoreError(
        f"{where}: needs Python code that it brings along, and code out of a model's folder is never run",
        "take a model that transformers loads without trust_remote_code",
    )


def in_one_line(error: BaseException) -> str:
    """What it says, at most 300 characters; its class's name where it says nothing."""
    return " ".join(str(error).split())[:300] or type(error).__name__
