"""Which completions hold no answer, by how they ended: they are paid for and kept, and no student learns from them."""

from collections.abc import Mapping

from bitnet_providers.teachers.openai_compatible.thoughts import THOUGHT_IN_PROMPT

Ending = tuple[str, str]
"""What says whether a completion holds an answer: its finish reason, and those of its repairs that matter here."""
_MATTER = (THOUGHT_IN_PROMPT, "reasoning_dropped")


def ending_of(finish_reason: str, repairs: str | None) -> Ending:
    return finish_reason, " ".join(name for name in _MATTER if name in (repairs or ""))


def begins_in_thought(endings: Mapping[Ending, int]) -> bool:
    """Whether a teacher's answers begin within thoughts, as its template writes the first tag: more than half of those
    that came to their end did. `endings`: how often each came."""
    ended = {repairs: count for (reason, repairs), count in endings.items() if reason == "stop"}
    return sum(count for repairs, count in ended.items() if THOUGHT_IN_PROMPT in repairs) > sum(ended.values()) / 2


FILTER = "content_filter"
"""The finish reason of what a filter cut."""
FILTERED = "a content filter cut its answer, or left it out"
ASK_AGAIN = "reword the prompt, or ask once more with --retry-failed"
"""What to do about it."""
CUT_IN_THOUGHT = "its answer was cut within the thoughts (max_new_tokens is too low)"


def no_answer(finish_reason: str, repairs: str | None, in_thought: bool) -> str | None:
    """Why there is no answer; None: there is one. `in_thought`: the teacher's answers begin within thoughts."""
    if finish_reason == FILTER:
        return FILTERED
    if in_thought and finish_reason == "length" and "reasoning_dropped" not in (repairs or ""):
        return CUT_IN_THOUGHT
    return None
