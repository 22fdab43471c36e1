"""Conversations as token ids: the prompt through the chat template, the response behind it.

Prompt and response are tokenised apart and put together: that is what a model sees when it generates, where the
prompt's ids are fixed before the first token of the response exists. Tokenising both as one text could join across the
border.
"""

from collections.abc import Collection, Sequence
from typing import Any

from bitnet_providers.contract import Message, ProviderError, RequestRefusedError

_MARK = "\ue000answer\ue001"  # private-use characters, which no template contains


def prompt_ids(tokenizer: Any, messages: Sequence[Message], model: str) -> list[int]:
    """Ids of the conversation, up to and with the head of the assistant's turn.

    Raises RequestRefusedError where the template refuses this conversation, ProviderError where there is none.
    """
    return text_ids(tokenizer, _render(tokenizer, messages, model, add_generation_prompt=True))


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text as it stands: no BOS or other token is added."""
    return [int(each) for each in tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]


def begin_ids(tokenizer: Any) -> list[int]:
    """The token that this tokenizer puts before any text, where it does so: models trained with it (Gemma, Llama) find
    nothing likely without it."""
    begin = tokenizer.bos_token_id
    return [int(begin)] if begin is not None and tokenizer("a")["input_ids"][:1] == [begin] else []


def end_of_turn_id(tokenizer: Any, stop_ids: Collection[int]) -> int | None:
    """The token that the template puts after an assistant's message, where it is one that stops generation.

    Else the tokenizer's end of sequence; None where there is neither.
    """
    if tokenizer.chat_template is not None:
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}]
        after = _render(tokenizer, turns, "the model", add_generation_prompt=False).partition(_MARK)[2]
        for token_id in text_ids(tokenizer, after):
            if token_id in stop_ids:
                return token_id
    return None if tokenizer.eos_token_id is None else int(tokenizer.eos_token_id)


def _render(tokenizer: Any, messages: Sequence[Message], model: str, *, add_generation_prompt: bool) -> str:
    if tokenizer.chat_template is None:
        raise ProviderError(
            f"{model} has no chat template, so it can't answer a conversation",
            "set teacher.model to an instruct model, or give plain texts to score (collect.texts, without messages)",
        )
    try:  # the template is a stranger's program: it may raise anything
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except Exception as error:
        raise RequestRefusedError(
            f"{model}'s chat template refuses this conversation: {type(error).__name__}: {error}",
            "change its roles or their order",
        ) from None
    return str(text)
