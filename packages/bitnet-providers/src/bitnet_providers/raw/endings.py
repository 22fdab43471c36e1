"""Which completions hold no answer, by how they ended: they are paid for and kept, and no student learns from them."""

from collections.abc import Iterable

from bitnet_providers.teachers.openai_compatible.answer import THOUGHT_IN_PROMPT


def begins_in_thought(endings: Iterable[tuple[str, str | None]]) -> bool:
    """Whether a teacher's answers begin within thoughts, as its template writes the first tag: more than half of those
    that came to their end did. `endings`: finish reason and repairs (JSON) of each, as in raw shards."""
    ended = [THOUGHT_IN_PROMPT in (repairs or "") for reason, repairs in endings if reason == "stop"]
    return sum(ended) > len(ended) / 2


def no_answer(finish_reason: str, repairs: str | None, in_thought: bool) -> str | None:
    """Why there is no answer; None: there is one. `in_thought`: the teacher's answers begin within thoughts."""
    if finish_reason == "content_filter":
        return "its answer was cut by a content filter"
    if in_thought and finish_reason == "length" and "reasoning_dropped" not in (repairs or ""):
        return "its answer was cut within the thoughts (max_new_tokens is too low)"
    return None
