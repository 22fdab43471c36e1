"""The chat template of a local model, and conversations as token ids through it.

The template is one that the manifest names, the model's own, or, for a base model, plain text: ``plain.jinja`` puts a
conversation's contents one after the other, ``plain_behind_begin.jinja`` puts the begin token before them, where the
tokenizer does so with any text.

Prompt and response are tokenised apart and put together: that is what a model sees when it generates, where the
prompt's ids are fixed before the first token of the response exists. Tokenising both as one text could join across the
border.
"""

import json
import mmap
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from bitnet_providers.contract import Message, ProviderError, RequestRefusedError
from bitnet_providers.hub.snapshots import cached_folder
from bitnet_providers.teachers.local.model_source import on_the_hub, own_code_refused
from bitnet_providers.teachers.local.options import EMBEDDED_MODEL, LocalTeacherConfig

PLAIN = Path(__file__).with_name("plain.jinja")
PLAIN_BEHIND_BEGIN = Path(__file__).with_name("plain_behind_begin.jinja")
FILES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates/default.jinja")

_GGUF_KEY = b"\x17\0\0\0\0\0\0\0tokenizer.chat_template\x08\0\0\0"
"""As a GGUF's header writes it: the name's length in 8 bytes, the name, the type of its value (8: a string)."""
_HEADER_BYTES = 256 * 2**20


def lacks_template(options: LocalTeacherConfig) -> bool:
    """Whether conversations can only be asked as plain text, told by small files or a GGUF's header; no call.

    False where it isn't known yet.
    """
    if options.chat_template or options.model == EMBEDDED_MODEL:
        return False
    name = on_the_hub(options.model)
    folder = Path(options.model) if name is None else cached_folder(name)
    if folder is not None and folder.is_file() and folder.suffix == ".gguf":
        return not _gguf_has_template(folder)
    if folder is None or not (folder / "tokenizer_config.json").is_file():
        return False
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # opening it says what is wrong
    own = settings.get("chat_template") if isinstance(settings, dict) else None
    return not own and not any((folder / name).is_file() for name in FILES)


def _gguf_has_template(file: Path) -> bool:
    try:
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(_GGUF_KEY, 0, _HEADER_BYTES) >= 0
    except (OSError, ValueError):  # an empty file can't be mapped
        return True  # opening it says what is wrong


def chosen_template(tokenizer: Any, file: str) -> str | None:
    """The text that takes the place of the tokenizer's own; None: its own. Raises ProviderError."""
    if file:
        try:
            return Path(file).read_text(encoding="utf-8-sig")  # a byte-order mark would stand before every prompt
        except (OSError, UnicodeDecodeError) as error:
            raise ProviderError(
                f"teacher.chat_template: {file} can't be read ({error})", "name a file with a template (Jinja)"
            ) from error
    return None if tokenizer.chat_template is not None else plain_template(tokenizer).read_text(encoding="utf-8")


def plain_template(tokenizer: Any) -> Path:
    """The file that asks as plain text, as this tokenizer begins one."""
    return PLAIN_BEHIND_BEGIN if begin_ids(tokenizer) else PLAIN


def plain_template_of(folder: Path) -> Path:
    """`plain_template` of the tokenizer in a folder. Raises ProviderError."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        return plain_template(tokenizer)
    except (OSError, ValueError) as error:
        refused = own_code_refused(f"{folder}: its tokenizer", error)
        why = f"{folder}: transformers can't load the tokenizer: {error}"
        raise refused or ProviderError(why, "get it again") from error


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
