"""Where the teacher's tokens stand in its text, by bytes. T tokens of one completion.

A token that is no part of the text (special, or empty) has no place; the one that ends the turn stands at the text's
end and takes one byte beyond it.
"""

import attrs
import numpy as np
from numpy.typing import NDArray

UNKNOWN = -2
"""Not a byte of the response (-1 is: a prefix space)."""

END_NAMES = frozenset(
    name.encode()
    for name in (
        *("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<|eom_id|>", "<|end|>", "<|return|>"),
        *(
            "</s>",
            "<eos>",
            "<end_of_turn>",
            "<｜end▁of▁sentence｜>",
            "<|END_OF_TURN_TOKEN|>",
            "<|eot|>",
            "<|endofprompt|>",
        ),
    )
)
"""How tokens that end a turn are usually spelt, by teachers of which only bytes are known; `ends_by_content` finds
others."""


def ends_by_content(spelt: bytes, last: bytes, text: bytes, finish_reason: str) -> bool:
    """Whether the text proves that the last token is none of its own: it ends the turn, whatever its name.

    spelt: the bytes of all tokens, `last` included. A cut answer proves nothing (a piece of a character is left out of
    its text), and neither does white space, which servers strip.
    """
    if finish_reason == "length" or not last.strip():
        return False
    before = spelt[: len(spelt) - len(last)]
    return before in (text, b" " + text) and last.decode("utf-8", "replace").encode() == last


@attrs.frozen(eq=False)
class TeacherText:
    """One completion of the teacher."""

    text: bytes
    """The response without special tokens."""
    starts: NDArray[np.int64]
    """[T] `UNKNOWN` where the token is no part of the text."""
    ends: NDArray[np.int64]
    """[T]"""
    prefix_space: bool
    """The first token's bytes begin with a space that the text lacks (SentencePiece): byte -1."""
    ended: bool
    """The last token ends the turn."""
    differs: bool
    """The tokens' bytes are not the text; only what agrees at both ends has a place."""


def locate(
    lengths_T: NDArray[np.int64], spelt: bytes, is_special_T: NDArray[np.bool_], is_end: bool, text: bytes
) -> TeacherText:
    """lengths_T: bytes of each token; `spelt`: all of them together; `is_end`: the last token ends the turn.

    `text`: the response as the teacher gave it, with or without the special tokens' names.
    """
    silent_T = is_special_T | (lengths_T == 0)
    if is_end:
        silent_T[-1] = True
    spoken = spelt
    if silent_T.any():
        spoken = np.frombuffer(spelt, np.uint8)[np.repeat(~silent_T, lengths_T)].tobytes()
    lengths_T = np.where(silent_T, 0, lengths_T)
    ends = np.cumsum(lengths_T)
    starts = ends - lengths_T
    differs = prefix_space = False
    if text in (spoken, spelt):
        text = spoken
    elif spoken.startswith(b" ") and (b" " + text) in (spoken, spelt):
        text, prefix_space = spoken[1:], True
        starts, ends = starts - 1, ends - 1
    else:
        differs = True
        same_before = _common_prefix(spoken, text)
        same_after = min(_common_prefix(spoken[::-1], text[::-1]), min(len(spoken), len(text)) - same_before)
        shift = len(text) - len(spoken)
        from_end_T = starts >= len(spoken) - same_after
        silent_T |= ~from_end_T & (ends > same_before)
        starts, ends = starts + shift * from_end_T, ends + shift * from_end_T
    starts, ends = np.where(silent_T, UNKNOWN, starts), np.where(silent_T, UNKNOWN, ends)
    if is_end:
        starts[-1], ends[-1] = len(text), len(text) + 1
    return TeacherText(text, starts, ends, prefix_space, is_end, differs)


def _common_prefix(a: bytes, b: bytes) -> int:
    size = min(len(a), len(b))
    unequal = np.flatnonzero(np.frombuffer(a[:size], np.uint8) != np.frombuffer(b[:size], np.uint8))
    return int(unequal[0]) if len(unequal) else size
