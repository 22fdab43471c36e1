"""The nearest name to a mistyped one."""

import difflib
from collections.abc import Iterable, Sequence


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The one of `known` that `word` most likely stands for, or None where nothing is near."""
    by_plain_name = {_plain(name): name for name in known}
    match = difflib.get_close_matches(_plain(word)[:80], by_plain_name, n=1, cutoff=0.6)
    return by_plain_name[match[0]] if match else None


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """The fix for a mistyped name: ``did you mean "x"?`` where something is near, else the list of what there is."""
    match = nearest(word, known)
    if match is not None:
        return f'did you mean "{match}"?'
    return f"choose one of: {', '.join(known)}" if known else ""


def _plain(name: str) -> str:
    return name.casefold().replace("-", "_")
