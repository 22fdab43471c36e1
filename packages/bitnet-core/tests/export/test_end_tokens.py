"""What ends an answer: the same tokens in the checkpoint, in every runtime and in every export."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader

from bitnet_core.config.export import GGUFOptions, HFOptions, PackedOptions
from bitnet_core.export.folder import export
from bitnet_core.export.gguf.write import gguf_exporter
from bitnet_core.export.hf import hf_exporter
from bitnet_core.export.packed import packed_exporter
from bitnet_core.projection.student_text import Student
from bitnet_core.runtime.open import open_runtime
from bitnet_core.traces.tokenizer import end_ids, end_tokens, load_tokenizer, turn_end
from bitnet_core.traces.tokenizer_files import put_template


def set_in(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.fixture
def base(checkpoint: Path, tmp_path: Path) -> Path:
    """As a base model is published: sequences end with <|endoftext|>, the template ends turns with <|im_end|>."""
    folder = shutil.copytree(checkpoint, tmp_path / "base")
    set_in(folder / "tokenizer_config.json", eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    for name in ("config.json", "generation_config.json"):
        set_in(folder / name, eos_token_id=0, pad_token_id=0)
    return folder


def exported(checkpoint: Path, out: Path) -> dict[str, Any]:
    kinds = {
        "gguf": gguf_exporter(GGUFOptions(types=("tq2_0",))),
        "hf": hf_exporter(HFOptions()),
        "packed": packed_exporter(PackedOptions()),
    }
    found: dict[str, Any] = export(checkpoint, kinds, out)["exports"]
    return found


def gguf_ends(file: Path) -> dict[str, Any]:
    fields = GGUFReader(file).fields
    names = ("eos_token_id", "eot_token_id", "eom_token_id", "eos_token_ids")
    found = {name: fields.get(f"tokenizer.ggml.{name}") for name in names}
    return {name: field.contents() for name, field in found.items() if field is not None}


def test_the_turn_s_end_stops_everywhere(base: Path, tmp_path: Path) -> None:
    exported(base, tmp_path)
    for folder, kind in (
        (base, "torch"),
        (base, "packed"),
        (tmp_path / "packed", "packed"),
        (tmp_path / "hf", "torch"),
    ):
        with open_runtime(folder, kind=kind) as runtime:  # type: ignore[call-overload]
            assert runtime.end == {0, 2}, (folder.name, kind)
    for folder in ("hf", "packed"):
        for name in ("config.json", "generation_config.json"):
            assert json.loads((tmp_path / folder / name).read_text())["eos_token_id"] == [0, 2]
    ends = gguf_ends(tmp_path / "student-tq2_0.gguf")
    assert ends == {"eos_token_id": 0, "eot_token_id": 2, "eos_token_ids": [0, 2]}
    stops = [line for line in (tmp_path / "Modelfile").read_text().splitlines() if "stop" in line]
    assert stops == ['PARAMETER stop "<|endoftext|>"', 'PARAMETER stop "<|im_end|>"']


def test_lists_of_end_tokens_reach_the_files(base: Path, tmp_path: Path) -> None:
    quote = load_tokenizer(base).convert_tokens_to_ids('"')
    set_in(base / "generation_config.json", eos_token_id=[0, 1, 9, quote])
    report = exported(base, tmp_path)
    file = tmp_path / "student-tq2_0.gguf"
    ends = [0, 2, *sorted([1, 9, quote])]
    assert gguf_ends(file)["eos_token_ids"] == ends
    assert [gguf_ends(file)[name] for name in ("eos_token_id", "eot_token_id", "eom_token_id")] == [0, 2, 1]
    (note,) = [note for note in report[file.name]["notes"] if "end tokens" in note]
    assert all(load_tokenizer(base).decode([id_]) in note for id_ in [quote, 9])
    stops = [line for line in (tmp_path / "Modelfile").read_text().splitlines() if "stop" in line]
    assert len(stops) == 5
    assert "PARAMETER stop " + '"' * 7 in stops  # a quotation mark between three of them


@pytest.mark.parametrize(
    ("template", "end"),
    [
        ("{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}", 2),
        ("{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}", 0),
        ("{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}<|endoftext|>", 0),
        ("{% for m in messages %}{{ m['content'] }}\n{% endfor %}", None),
        ("{{ raise_exception('no') }}", None),
        ("{{ messages[0]['content'] }}", None),
        (None, None),
    ],
)
def test_what_a_template_puts_behind_an_answer(base: Path, template: str | None, end: int | None) -> None:
    tokenizer = load_tokenizer(base)
    tokenizer.chat_template = template
    assert turn_end(tokenizer, {0}) == end
    assert end_tokens(base, tokenizer) == ([0] if end in (None, 0) else [0, end])
    put_template(base, template or "") if template else (base / "chat_template.jinja").unlink()
    assert Student(base).end_of_turn == (0 if end is None else end)  # what the traces end turns with


def test_without_a_generation_config_the_models_config_says_it(base: Path) -> None:
    set_in(base / "config.json", eos_token_id=[0, 9])
    tokenizer = load_tokenizer(base)
    assert end_ids(base, tokenizer) == {0}
    (base / "generation_config.json").unlink()
    assert end_ids(base, tokenizer) == Student(base).end_ids == {0, 9}
    (base / "config.json").write_text("[]")
    assert end_ids(base, tokenizer) == {0}


def test_white_space_that_is_a_token_ends_no_turn(base: Path) -> None:
    tokenizer = load_tokenizer(base)
    tokenizer.add_tokens(["\n\n"])
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n\n<|im_end|>{% endfor %}"
    tokenizer.save_pretrained(base)
    assert turn_end(load_tokenizer(base), ()) == Student(base).end_of_turn == 2


def test_of_several_templates_the_files_get_the_one_that_asks(base: Path, tmp_path: Path) -> None:
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates/tool_use.jinja").write_text("tools")
    exported(base, tmp_path)
    field = GGUFReader(tmp_path / "student-tq2_0.gguf").fields["tokenizer.chat_template"]
    assert field.contents() == (base / "chat_template.jinja").read_text()
    assert "TEMPLATE" in (tmp_path / "Modelfile").read_text()
    assert (tmp_path / "hf/additional_chat_templates/tool_use.jinja").read_text() == "tools"
