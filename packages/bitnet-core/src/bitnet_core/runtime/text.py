"""Between text and tokens, for the runtimes that have a tokenizer of transformers."""

from collections.abc import Generator, Iterable, Sequence
from typing import Any, Literal

from bitnet_core.errors import CoreError
from bitnet_core.runtime.contract import Ending, Prompt


def encode(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Token ids of a conversation in the chat template, or of a text as it stands. Raises CoreError."""
    if isinstance(prompt, str):
        return [int(id_) for id_ in tokenizer(prompt).input_ids]
    if tokenizer.chat_template is None:
        raise CoreError(
            "this model's tokenizer has no chat template: put a chat_template.jinja beside it, or let the model go "
            "on with your text as it stands (bitnet generate --plain)"
        )
    from jinja2 import TemplateError

    try:
        made = tokenizer.apply_chat_template(
            [dict(message) for message in prompt], add_generation_prompt=True, return_dict=True
        )
    except (TemplateError, ValueError, TypeError) as error:
        raise CoreError(
            f"the model's chat template refuses this conversation ({error}); some take no system message, and most "
            "want the user and the assistant to take turns"
        ) from error
    return [int(id_) for id_ in made["input_ids"]]


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def checked_prompt(ids: list[int], context: int) -> list[int]:
    """`ids`; CoreError where nothing is asked, or nothing can be answered within `context` tokens."""
    if not ids:
        raise CoreError("the prompt is empty; write something")
    if len(ids) >= context:
        raise CoreError(f"the prompt has {len(ids):,} tokens, the model's context {context:,}: make it shorter")
    return ids


def pieces(
    tokenizer: Any, prompt_tokens: int, tokens: Iterable[int], end: frozenset[int]
) -> Generator[str, None, Ending]:
    """The text of `tokens` as they come, up to one of `end`."""
    new: list[int] = []
    said = ""
    reason: Literal["stop", "length"] = "length"
    for id_ in tokens:
        new.append(id_)
        if id_ in end:
            reason = "stop"
            break
        text = decode(tokenizer, new)
        # The bytes of a character may come in several tokens: half of one decodes to U+FFFD.
        if len(text) > len(said) and not text.endswith("\ufffd"):
            yield text[len(said) :]
            said = text
    rest = decode(tokenizer, new)[len(said) :]
    if rest:
        yield rest
    return Ending(reason, prompt_tokens, len(new))
