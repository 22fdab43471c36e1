"""Messages between a process and its workers: pickled, each behind its length, over a pipe. And what a launcher says
of workers that are gone."""

import pickle
from typing import IO, Any

_LENGTH_BYTES = 8
REPLACEMENTS = 2
"""Of each worker, one after the other: what kills one may kill the next as well."""


def send(pipe: IO[bytes], message: Any) -> None:
    """Raises OSError where nobody is left to read it."""
    body = pickle.dumps(message)
    pipe.write(len(body).to_bytes(_LENGTH_BYTES, "little") + body)
    pipe.flush()


def receive(pipe: IO[bytes]) -> Any:
    """The next message. Raises EOFError where the other end is gone."""
    return pickle.loads(_exactly(pipe, int.from_bytes(_exactly(pipe, _LENGTH_BYTES), "little")))


def _exactly(pipe: IO[bytes], length: int) -> bytes:
    body = pipe.read(length)
    if len(body) < length:
        raise EOFError
    return body


def told(error: BaseException) -> tuple[str, str]:
    """(why, fix) of any error, for the other side."""
    why, fix = getattr(error, "why", None), getattr(error, "fix", "")
    return (str(why), str(fix)) if why is not None else (f"{type(error).__name__}: {error}", "")


def not_opened(number: int, error: BaseException) -> str:
    return f"worker {number} can't be opened ({told(error)[0]})"


def in_its_place(number: int) -> str:
    return f"; worker {number} takes its place"


def all_gone(workers: int) -> str:
    return f"all {workers} workers are gone, and those that took their places"
