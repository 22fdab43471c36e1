"""The system prompt apart from the turns, for APIs that take it so."""

from collections.abc import Sequence

from bitnet_providers.contract import Message, RequestRefusedError


def split_system(messages: Sequence[Message]) -> tuple[str | None, tuple[Message, ...]]:
    """The system text (system messages before all others, a blank line between them) and the turns.

    Raises RequestRefusedError for a system message between turns, which would lose its place, and for no turns.
    """
    first_turn = next((index for index, message in enumerate(messages) if message["role"] != "system"), len(messages))
    system, turns = messages[:first_turn], tuple(messages[first_turn:])
    if any(message["role"] == "system" for message in turns):
        raise RequestRefusedError(
            "a system message stands between turns, and this API takes the system prompt before them",
            "move it to the top",
        )
    if not turns:
        raise RequestRefusedError("the conversation has no user message", "add one")
    return "\n\n".join(message["content"] for message in system) or None, turns
