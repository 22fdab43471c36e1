"""A tokenizer that was copied is the tokenizer that it was copied from; templates are read and put in their place."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from bitnet_core.errors import CoreError
from bitnet_core.model import BitNetKDEConfig
from bitnet_core.traces.tokenizer import load_tokenizer, tokenizer_sha256
from bitnet_core.traces.tokenizer_files import (
    PATTERNS,
    copy_tokenizer,
    has_template,
    put_template,
    read_template,
    tokenizer_files,
)

TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|im_end|>{% endfor %}"
CHAT = [{"role": "user", "content": "tea?"}]
TEMPLATE_PLACES = ("config", "config list", "chat_template.jinja", "chat_template.json", "additional")


def put_source(folder: Path, serialised: str, *, slow: bool, config: dict[str, Any], kind: str | None) -> None:
    """A tokenizer as published: one file, or the vocabulary and merges of a class that transformers converts."""
    if slow:
        model = json.loads(serialised)["model"]
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False))
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
        first = max(model["vocab"].values()) + 1
        (folder / "added_tokens.json").write_text(json.dumps({"<think>": first, "</think>": first + 1}))
    else:
        (folder / "tokenizer.json").write_text(serialised)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if kind is not None:
        (folder / "config.json").write_text(json.dumps({"model_type": kind}))


def put_template_at(folder: Path, place: str, template: str) -> None:
    """One of the places where transformers looks for a chat template."""
    file = folder / "tokenizer_config.json"
    match place:
        case "config":
            file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))
        case "config list":
            several = [{"name": "default", "template": template}, {"name": "tool_use", "template": "tools"}]
            file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": several}))
        case "additional":
            (folder / "additional_chat_templates").mkdir()
            (folder / "additional_chat_templates/tool_use.jinja").write_text("tools")
            (folder / "chat_template.jinja").write_text(template)
        case "chat_template.json":
            (folder / place).write_text(json.dumps({"chat_template": template}))
        case _:
            (folder / place).write_text(template)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    slow=st.booleans(),
    named=st.booleans(),
    kind=st.sampled_from(["qwen2", "gpt2"]),
    specials=st.booleans(),
    place=st.sampled_from(TEMPLATE_PLACES),
)
def test_a_copy_is_the_same_tokenizer(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer_folder: Path,
    slow: bool,
    named: bool,
    kind: str,
    specials: bool,
    place: str,
) -> None:
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target")
    names = {"qwen2": "Qwen2Tokenizer", "gpt2": "GPT2Tokenizer"}
    config: dict[str, Any] = {"eos_token": "<|im_end|>"} | ({"tokenizer_class": names[kind]} if named else {})
    serialised = (tokenizer_folder / "tokenizer.json").read_text()
    put_source(source, serialised, slow=slow, config=config, kind=kind)
    put_template_at(source, place, TEMPLATE)
    if specials:
        (source / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<|im_start|>"}))

    copy_tokenizer(source, target)
    BitNetKDEConfig(vocab_size=400, hidden_size=8, num_attention_heads=2).save_pretrained(target)
    theirs, ours = load_tokenizer(source), load_tokenizer(target)
    assert tokenizer_sha256(ours) == tokenizer_sha256(theirs)
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.chat_template == theirs.chat_template
    assert ours("a <think> b").input_ids == theirs("a <think> b").input_ids
    assert has_template(target)


@pytest.mark.slow
def test_every_file_of_every_tokenizer_class_is_known() -> None:
    """What the classes of transformers themselves say that they read."""
    names: set[str] = set()
    for listed in TOKENIZER_MAPPING_NAMES.values():
        for name in [listed] if isinstance(listed, str) else listed or ():
            try:
                names |= set((getattr(transformers, name).vocab_files_names or {}).values())
            except (ImportError, AttributeError):  # wants a package that isn't here
                continue
    assert len(names) > 10
    missing = [name for name in names if not any(Path(name).match(pattern) for pattern in PATTERNS)]
    assert missing == []


def test_weights_and_the_model_s_config_are_no_tokenizer(tmp_path: Path) -> None:
    for name in ("config.json", "generation_config.json", "model.safetensors", "training.json", "README.md"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "tekken.json").write_text("{}")
    assert [file.name for file in tokenizer_files(tmp_path)] == ["tekken.json"]


@pytest.mark.parametrize("place", [*TEMPLATE_PLACES, None])
def test_the_template_that_is_put_is_the_only_one(tmp_path: Path, tokenizer_folder: Path, place: str | None) -> None:
    serialised = (tokenizer_folder / "tokenizer.json").read_text()
    put_source(tmp_path, serialised, slow=False, config={"tokenizer_class": "PreTrainedTokenizerFast"}, kind=None)
    assert not has_template(tmp_path)
    if place is not None:
        put_template_at(tmp_path, place, "another")
    put_template(tmp_path, TEMPLATE)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer.apply_chat_template(CHAT, tokenize=False) == "user: tea?<|im_end|>"


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("{% for m in messages %}", "can't render a question"),
        ("{{ raise_exception('no') }}", r"can't render a question \(no\)"),
        ("{{ messages[0]['content'] / 2 }}", "can't render a question"),
        ("", "a question that it renders is not in what comes out"),
        ("hello", "a question that it renders is not in what comes out"),
    ],
)
def test_a_template_that_can_ask_nothing_is_refused(tmp_path: Path, template: str, fault: str) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text(template)
    with pytest.raises(CoreError, match=rf"mine\.jinja: .*{fault}.*→ mend the template"):
        read_template(file)


@pytest.mark.parametrize(
    "template",
    [
        "{{ bos_token + messages[-1].content + eos_token }}",
        "{{ messages | tojson(ensure_ascii=False, indent=2) }}",
        "{% if tools is not none %}{{ tools | length }}{% endif %}{{ messages[-1].content }}",
        "{% if messages[0].role != 'system' %}{{ raise_exception('no') }}{% endif %}{{ messages[1].content }}",
        "{% for m in messages %}{% if m.role != 'user' %}{% continue %}{% endif %}{{ m.content }}{% endfor %}",
    ],
)
def test_a_template_may_use_what_transformers_gives_it(tmp_path: Path, tokenizer: Any, template: str) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text(template)
    assert read_template(file) == template
    chat = [{"role": "system", "content": "you"}, {"role": "user", "content": "tea?"}]
    tokenizer.chat_template = template
    assert "tea?" in tokenizer.apply_chat_template(chat, tokenize=False)


def test_a_template_is_read_as_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    text = "{%- generation %}{{ messages[0].content | tojson }}\n{% endgeneration %}{{ strftime_now('%Y') }}é"
    file.write_text(text, encoding="utf-8")
    assert read_template(file) == text
    file.write_text(text, encoding="utf-8-sig")  # as Windows' editors do
    assert read_template(file) == text
    file.write_bytes(b"\xff")
    with pytest.raises(CoreError, match="cannot be read"):
        read_template(file)
    with pytest.raises(CoreError, match="cannot be read"):
        read_template(tmp_path / "none.jinja")
