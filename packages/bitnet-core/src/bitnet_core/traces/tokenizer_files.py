"""The files of a tokenizer in a model's folder, its chat template among them. Loads no torch and no transformers."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bitnet_core.errors import CoreError
from bitnet_core.files import write_json, write_text

TEMPLATE = "chat_template.jinja"
MORE_TEMPLATES = "additional_chat_templates"
CONFIG = "tokenizer_config.json"
PATTERNS = (
    *("tokenizer*", "*.tokenizer", "special_tokens_map.json", "added_tokens.json", "normalizer.json"),
    *("vocab*", "merges.txt", "bpe.codes", "*.model", "*.spm", "*.tiktoken", "tekken*.json"),
    *("byte_maps.json", "emoji.json", "entity_vocab.json", "word_pronunciation.json", "word_shape.json"),
    *("chat_template*", f"{MORE_TEMPLATES}/*.jinja"),
)
"""What transformers' tokenizers read, whichever their class is."""

_MARK = "X0words0X"
_GIVEN = {"tools": None, "documents": None} | {
    f"{name}_token": "" for name in ("bos", "eos", "pad", "unk", "sep", "cls", "mask")
}
"""What transformers hands to every template beside the messages; special tokens are here without their names."""


def tokenizer_files(folder: Path) -> list[Path]:
    """Those of its files that belong to the tokenizer, sorted."""
    return sorted({file for pattern in PATTERNS for file in folder.glob(pattern) if file.is_file()})


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer's files of one model folder into another, so that the target stands alone.

    Where nothing but the model's config.json says which class reads them, the copy says it: the target's model is
    another one.
    """
    files = tokenizer_files(source)
    for file in files:
        place = target / file.relative_to(source)
        place.parent.mkdir(exist_ok=True)
        shutil.copy2(file, place)
    settings = read_settings(target)
    if files and "tokenizer_class" not in settings and (source / "config.json").is_file():
        from transformers import AutoTokenizer

        loaded = AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
        name = type(loaded).__name__
        write_json(target / CONFIG, settings | {"tokenizer_class": name})


def read_settings(folder: Path) -> dict[str, Any]:
    """``tokenizer_config.json``; empty where there is none, or nothing that can be read."""
    try:
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def has_template(folder: Path) -> bool:
    """Whether a tokenizer's folder has a chat template, in any of the places where transformers looks for one."""
    files = (TEMPLATE, "chat_template.json", f"{MORE_TEMPLATES}/default.jinja")
    return any((folder / name).is_file() for name in files) or bool(read_settings(folder).get("chat_template"))


def put_template(folder: Path, template: str) -> None:
    """Make `template` the only one of the tokenizer in `folder`."""
    shutil.rmtree(folder / MORE_TEMPLATES, ignore_errors=True)
    (folder / "chat_template.json").unlink(missing_ok=True)
    settings = read_settings(folder)
    if settings.pop("chat_template", None) is not None:
        write_json(folder / CONFIG, settings)
    write_text(folder / TEMPLATE, template)


def read_template(file: Path) -> str:
    """The text of a chat template. Raises CoreError where it can't be read, or can't put a question into its form."""
    try:
        text = file.read_text(encoding="utf-8-sig")  # a byte-order mark would stand before every prompt
    except (OSError, UnicodeDecodeError) as error:
        raise CoreError(f"{file}: cannot be read ({error})", "set project.chat_template to a Jinja file") from error
    if wrong := "; ".join(_faults(text)):
        raise CoreError(f"{file}: {wrong}", "mend the template, or leave project.chat_template out for the tokenizer's")
    return text


def _faults(template: str) -> Iterator[str]:
    """What is wrong with it, found by rendering a question as transformers does."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}``, with which some mark the assistant's words."""

        tags = {"generation"}  # noqa: RUF012 -- Jinja's

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda form: "2000"}
    environment.filters["tojson"] = lambda value, **how: json.dumps(value, **{"ensure_ascii": False, **how})
    question: Mapping[str, str] = {"role": "user", "content": _MARK}
    faults = []
    # Some take no conversation without a system message.
    for chat in ([question], [{"role": "system", "content": "?"}, question]):
        try:
            said = environment.from_string(template).render(messages=chat, add_generation_prompt=True, **_GIVEN)
        except Exception as error:  # a template may divide by zero
            faults.append(f"it can't render a question ({error})")
            continue
        if _MARK in said:
            return
        faults.append("a question that it renders is not in what comes out")
    yield faults[0]
