"""Which chat template a local model is asked through: the manifest's, its own, or none (a base model)."""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bitnet_providers.collect.plan_requests import plan_collection
from bitnet_providers.config import CollectConfig
from bitnet_providers.contract import GenerateRequest, ProviderError, Sampling
from bitnet_providers.plugin import bitnet_teachers
from bitnet_providers.teachers.local.chat_template import (
    PLAIN,
    PLAIN_BEHIND_BEGIN,
    chosen_template,
    lacks_template,
    plain_template,
)
from bitnet_providers.teachers.local.options import LocalTeacherConfig
from bitnet_providers.teachers.local.teacher import open_local

LOCAL = next(each for each in bitnet_teachers() if each.name == "local")


@pytest.fixture(scope="module")
def base_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, as a base model comes: without a template."""
    folder = tmp_path_factory.mktemp("base") / "tiny-base"
    shutil.copytree(tiny_folder, folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def chat(text: str) -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": text},)


def test_a_base_model_is_told_without_loading_it(base_folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    assert lacks_template(LocalTeacherConfig(model=str(base_folder)))
    assert not lacks_template(LocalTeacherConfig(model=str(tiny_folder)))
    assert not lacks_template(LocalTeacherConfig(model=str(base_folder), chat_template="own.jinja"))
    assert not lacks_template(LocalTeacherConfig())
    assert not lacks_template(LocalTeacherConfig(model="org/not-fetched-yet"))
    for name, content in (
        ("chat_template.jinja", "{{ messages }}"),
        ("additional_chat_templates/default.jinja", "{{ messages }}"),
        ("tokenizer_config.json", '{"chat_template": "{{ messages }}"}'),
    ):
        folder = tmp_path / name.replace("/", "-")
        shutil.copytree(base_folder, folder)
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
        assert not lacks_template(LocalTeacherConfig(model=str(folder)))
    assert not LOCAL.capabilities_with(LocalTeacherConfig(model=str(base_folder))).chat
    assert LOCAL.capabilities_with(LocalTeacherConfig(model=str(tiny_folder))).chat


@pytest.mark.parametrize("has_template", [True, False])
def test_the_header_of_a_gguf_tells(tmp_path: Path, has_template: bool) -> None:
    from gguf import GGUFWriter

    path = tmp_path / "model.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_token_list(["tokenizer.chat_template", "a"])  # a token of that name is no template
    if has_template:
        writer.add_chat_template("{{ messages }}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert lacks_template(LocalTeacherConfig(model=str(path))) == (not has_template)


def test_a_base_model_goes_on_with_the_prompt_as_it_stands(base_folder: Path) -> None:
    teacher = open_local(LocalTeacherConfig(model=str(base_folder), dtype="fp32"))
    assert not teacher.capabilities.chat
    assert teacher.chat_template == PLAIN.read_text()
    tokenizer: Any = teacher._tokenizer

    async def asked(*messages: dict[str, str]) -> list[int]:
        answer = await teacher.generate(GenerateRequest(messages, Sampling(0.0, max_new_tokens=1), 1))
        assert answer.prompt_ids is not None
        return [int(each) for each in answer.prompt_ids]

    async def ask() -> None:
        assert await asked(*chat("The quick fox")) == tokenizer("The quick fox")["input_ids"]
        system = {"role": "system", "content": "Facts."}
        assert await asked(system, *chat("Paris is")) == tokenizer("Facts.\n\nParis is")["input_ids"]
        await teacher.aclose()

    asyncio.run(ask())


def test_a_tokenizer_that_begins_each_text_begins_the_prompt_too() -> None:
    class Tokenizer:
        bos_token_id: int | None = 1
        begins = True

        def __call__(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": [1, 5] if self.begins else [5]}

    tokenizer = Tokenizer()
    assert plain_template(tokenizer) == PLAIN_BEHIND_BEGIN
    tokenizer.begins = False
    assert plain_template(tokenizer) == PLAIN
    tokenizer.bos_token_id = None
    assert plain_template(tokenizer) == PLAIN
    assert PLAIN_BEHIND_BEGIN.read_text() == "{{ bos_token }}" + PLAIN.read_text()


def test_answers_to_a_conversation_want_a_template(base_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "plain"}\n{"id": "b", "prompt": "Q", "completion": "A"}\n')
    config = CollectConfig(texts=tmp_path / "texts.jsonl", top_k=1)
    teacher = open_local(LocalTeacherConfig(model=str(base_folder), dtype="fp32"))
    with pytest.raises(ProviderError) as caught:
        plan_collection(config, teacher, "local", 0)
    assert str(caught.value) == (
        '1 texts answer a conversation (the first: "b"), and the teacher has no chat template to put one into  → set '
        "teacher.chat_template to a file with one (Jinja), or use an instruct model"
    )
    template = tmp_path / "own.jinja"
    template.write_text("Q: {{ messages[-1]['content'] }} A: ")
    own = open_local(LocalTeacherConfig(model=str(base_folder), dtype="fp32", chat_template=str(template)))
    assert own.capabilities.chat
    assert own.chat_template == template.read_text()
    text = template.read_text()
    template.write_text(text, encoding="utf-8-sig")  # as Windows' editors do
    assert chosen_template(own._tokenizer, str(template)) == text
    assert own.description["fingerprint"] != teacher.description["fingerprint"]
    assert len(plan_collection(config, own, "local", 0)) == 2
    with pytest.raises(ProviderError, match=r"teacher.chat_template: .*none.jinja can't be read"):
        open_local(LocalTeacherConfig(model=str(base_folder), chat_template=str(tmp_path / "none.jinja")))
