"""The chat template of a local model: one that the manifest names, its own, or, for a base model, plain text.

A base model has none. Its prompts are asked as they stand: ``plain.jinja`` puts a conversation's contents one after the
other, ``plain_behind_begin.jinja`` puts the begin token before them, where the tokenizer does so with any text.
"""

import json
import mmap
from pathlib import Path
from typing import Any

from bitnet_providers.contract import ProviderError
from bitnet_providers.hub.snapshots import cached_folder
from bitnet_providers.teachers.local.chat_token_ids import begin_ids
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
