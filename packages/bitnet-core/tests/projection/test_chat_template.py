"""Chat templates are strangers' programs: whatever they do, there is a text or one clear error."""

import json
import random
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from bitnet_core.config.project import ProjectConfig
from bitnet_core.errors import CoreError
from bitnet_core.projection.chat_template import CLOCK, ChatTemplate
from bitnet_core.projection.project import project
from bitnet_core.projection.student_text import Student

TURNS = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]
PLAIN = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"


@pytest.fixture
def student(tokenizer_folder: Path, tmp_path: Path) -> Callable[[Any], Path]:
    """A folder with this template (text, or several by name)."""

    def folder(template: Any) -> Path:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
        tokenizer.chat_template = template
        shutil.rmtree(tmp_path / "student", ignore_errors=True)
        tokenizer.save_pretrained(tmp_path / "student")
        return tmp_path / "student"

    return folder


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ messages[0]['content'] + tools }}", "TypeError"),
        ("{{ raise_exception('no system role') }}", r"\(no system role\)"),
        ("{{ missing.name }}", "'missing' is undefined"),
        ("{{ now() }}", "'now' is undefined"),
        ("{% for m in messages %}", "Unexpected end of template"),
        ("{{ messages | unknown_filter }}", "No filter named"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages[0]['content'] % 3 }}", "TypeError"),
        ("{{ ''.__class__.__mro__ }}", "unsafe|undefined"),
        ("{% for i in range(999999999) %}{% endfor %}", "OverflowError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    ],
)
def test_a_template_that_fails(student: Callable[[Any], Path], template: str, reason: str) -> None:
    with pytest.raises(CoreError, match=rf"(refuses|fails on) a conversation .*({reason})") as told:
        Student(student(PLAIN), template).prompts([json.dumps(TURNS)])
    assert "roles system, user" in told.value.why
    assert told.value.fix == "set project.chat_template to a file with one that takes them (Jinja)"


@settings(max_examples=60, deadline=None)
@given(
    names=st.sampled_from(["messages", "tools", "messages[0]", "m", "strftime_now", "bos_token", "None", "7", "'x'"]),
    operator=st.sampled_from([" + ", " ~ ", " / ", " | length + ", "['a'] + ", ".b.c + ", "() + ", " % "]),
    others=st.sampled_from(["messages", "None", "tools", "'%Y'", "0", "{}", "strftime_now('%Y')"]),
)
def test_any_expression_gives_a_text_or_one_error(tokenizer: Any, names: str, operator: str, others: str) -> None:
    template = ChatTemplate(tokenizer, Path("folder"), "{{ " + names + operator + others + " }}")
    fix = None
    try:
        rendered = template.render(TURNS, add_generation_prompt=True)
    except CoreError as error:
        fix = error.fix
    assert isinstance(rendered, str) if fix is None else "project.chat_template" in fix


def test_several_templates(student: Callable[[Any], Path]) -> None:
    """One that is called default is taken; else the user must say which."""
    own = Student(student({"default": PLAIN, "tool_use": "{{ 1 / 0 }}"}))
    assert own.prompts([json.dumps(TURNS)]) == ["[system]Be kind.[user]Hello"]
    several = student({"rag": PLAIN, "tool_use": PLAIN})
    with pytest.raises(
        CoreError,
        match=r"several chat templates \(rag, tool_use\) and no default.*  → set project.chat_template to a file",
    ):
        Student(several).prompts([json.dumps(TURNS)])
    assert Student(several).prompts(["[]"]) == [""]  # plain texts need none
    assert Student(several, PLAIN).prompts([json.dumps(TURNS)]) == ["[system]Be kind.[user]Hello"]


def test_a_plain_text_begins_as_the_tokenizer_begins_one(student: Callable[[Any], Path]) -> None:
    folder = student(PLAIN)
    assert Student(folder).prompts(["[]"]) == [""]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    begin = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{begin[0]} $A", special_tokens=[begin])
    tokenizer.save_pretrained(folder)
    begun = Student(folder)
    (text,) = begun.tokenise(begun.prompts(["[]"]), ["a text"])
    # As the student reads a text later, and as the teacher that scored it did.
    assert [*text.prompt_ids.tolist(), *text.ids.tolist()] == tokenizer("a text").input_ids
    assert (text.prompt_ids.tolist(), text.starts[0]) == ([begin[1]], 0)


def test_the_clock_stands_still(student: Callable[[Any], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Later":
            return cls(2099, 5, 17, 3, 4, 5)

    template = "{{ strftime_now('%Y-%m-%d %H:%M:%S') }}"
    folder = student(template)
    before = Student(folder).prompts([json.dumps(TURNS)])
    monkeypatch.setattr(chat_template_utils, "datetime", Later)
    own = Student(folder)
    assert own.prompts([json.dumps(TURNS)]) == before == [CLOCK.strftime("%Y-%m-%d %H:%M:%S")]
    assert own.template.record["clock"] == CLOCK.isoformat()
    # Elsewhere the template is told the time as before.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    assert tokenizer.apply_chat_template(TURNS, tokenize=False) == "2099-05-17 03:04:05"


def test_chance_repeats_and_is_nobody_elses(student: Callable[[Any], Path]) -> None:
    folder = student("{{ 'abcdefghijklmnop' | random }}")
    random.seed(5)
    state = random.getstate()
    found = {Student(folder).prompts([json.dumps(TURNS)])[0] for _ in range(8)}
    assert len(found) == 1
    assert random.getstate() == state


def test_a_projection_with_a_clock_repeats_and_says_so(
    student: Callable[[Any], Path], write_raw: Callable[..., Path], tmp_path: Path
) -> None:
    rows = [
        {
            "prompt_idx": number,
            "sample_idx": 0,
            "source_id": str(number),
            "kind": "sample",
            "messages": json.dumps(TURNS),
            "text": b"Hi",
            "token_bytes": [b"Hi"],
            "token_logprobs": [-0.5],
            "candidate_counts": [1],
            "candidate_bytes": [b"Hi"],
            "candidate_logprobs": [-0.5],
            "finish_reason": "stop",
        }
        for number in range(3)
    ]
    write_raw(tmp_path / "raw" / "shard_000.parquet", rows, kind="openai", teacher={"model": "hosted"})
    folder = student("{{ strftime_now('%H:%M:%S.%f') }}" + PLAIN)
    shards = []
    for name in ("one", "two"):
        summary = project(tmp_path / "raw", tmp_path / name, folder, ProjectConfig(), seed=0)
        shards.append((tmp_path / name / "kd_shard_000.parquet").read_bytes())
    assert shards[0] == shards[1]
    assert f"all prompts say {CLOCK.isoformat()}" in summary["warnings"][0]
