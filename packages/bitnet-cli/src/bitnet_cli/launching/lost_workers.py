"""Workers that are lost: how often another takes a worker's place, and what is said of it."""

REPLACEMENTS = 2
"""Of each worker, one after the other: what kills one may kill the next as well."""


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
