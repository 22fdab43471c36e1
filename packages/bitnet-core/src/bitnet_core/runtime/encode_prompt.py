"""Between text and tokens, for the runtimes that have a tokenizer of transformers."""

from collections.abc import Sequence
from typing import Any

from bitnet_core.errors import CoreError
from bitnet_core.runtime.contract import Prompt, PromptError


def encode(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Token ids of a conversation in the chat template, or of a text as it stands. Raises PromptError.

    A text gets what the tokenizer puts around one, but no second begin token (one out of a template has its own).
    """
    if isinstance(prompt, str):
        begin = tokenizer.bos_token
        has_begin = begin is not None and prompt.startswith(begin)
        return [int(id_) for id_ in tokenizer(prompt, **({"add_special_tokens": False} if has_begin else {})).input_ids]
    if tokenizer.chat_template is None:
        raise PromptError(
            "this model's tokenizer has no chat template",
            "put a chat_template.jinja beside it, or let the model go on with your text as it stands (bitnet "
            "generate --plain)",
        )
    try:  # the template is a stranger's program: it may raise anything
        made = tokenizer.apply_chat_template(
            [dict(message) for message in prompt], add_generation_prompt=True, return_dict=True
        )
    except Exception as error:
        raise PromptError(
            f"the model's chat template refuses this conversation ({type(error).__name__}: {error})",
            "let the user and the assistant take turns; leave the system message out, which some templates don't take",
        ) from error
    return [int(id_) for id_ in made["input_ids"]]


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def checked_prompt(ids: list[int], context: int) -> list[int]:
    """`ids`; PromptError where nothing is asked, or nothing can be answered within `context` tokens."""
    if not ids:
        raise PromptError("the prompt is empty", "write something")
    if len(ids) >= context:
        raise PromptError(f"the prompt has {len(ids):,} tokens, the model's context {context:,}", "make it shorter")
    return ids


def checked_ids(ids: Sequence[int], vocabulary: int) -> Sequence[int]:
    """`ids`; CoreError for what is no token, which a table might read from its end."""
    if odd := [id_ for id_ in ids if not 0 <= id_ < vocabulary]:
        raise CoreError(f"token {odd[0]}: the model knows 0 to {vocabulary - 1}", "take the ids from its own tokenizer")
    return ids
