"""Prompts and texts out of Parquet files and Hugging Face datasets in a folder."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bitnet_providers.config import CollectConfig, ColumnsConfig, DatasetConfig
from bitnet_providers.contract import ProviderError
from bitnet_providers.prompts.load_prompts import Prompt, Text, load_inputs, load_prompts, load_texts

CHAT = [
    {"role": "user", "content": "What is 1+1?", "name": "x"},
    {"role": "assistant", "content": "2", "name": None},
]


def user(text: str) -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": text},)


def parquet(path: Path, **columns: list[object]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_prompts_with_ids_and_formats(tmp_path: Path) -> None:
    path = parquet(tmp_path / "p.parquet", id=[7, 8], prompt=["Hi", "Ho"], format=[None, "json"])
    assert load_prompts(path) == (Prompt("7", user("Hi")), Prompt("8", user("Ho"), "json"))
    assert load_prompts(path, limit=1) == (Prompt("7", user("Hi")),)


def test_a_conversation_is_asked_without_its_answer_and_comes_before_a_prompt(tmp_path: Path) -> None:
    path = parquet(tmp_path / "p.parquet", prompt=["other"], messages=[CHAT])
    assert load_prompts(path) == (Prompt("0", user("What is 1+1?")),)
    assert load_prompts(path, ColumnsConfig(prompt="prompt")) == (Prompt("0", user("other")),)


def test_columns_by_other_names(tmp_path: Path) -> None:
    path = parquet(tmp_path / "p.parquet", frage=["Hi"], key=["a"], body=["Once"])
    assert load_prompts(path, ColumnsConfig(prompt="frage", id="key")) == (Prompt("a", user("Hi")),)
    assert load_texts(path, ColumnsConfig(text="body")) == (Text("0", "Once"),)
    with pytest.raises(ProviderError) as caught:
        load_prompts(path)
    assert str(caught.value) == (
        f"{path}: no column is one that is read; it has frage, key, body  → name yours in [collect.columns]"
    )


def test_lists_of_structs_are_conversations(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]
    path = parquet(tmp_path / "p.parquet", conversations=[turns], embedding=[[1.0] * 8])
    assert load_prompts(path) == (Prompt("0", user("Hi")),)
    assert load_texts(path) == (Text("0", "Ho", user("Hi")),)
    by_key = {"role": ["user", "assistant"], "content": ["Hi", "Ho"]}  # as `datasets` has a sequence of structs
    assert load_texts(parquet(path, messages=[by_key])) == (Text("0", "Ho", user("Hi")),)


def test_mistakes_name_the_row(tmp_path: Path) -> None:
    empty = parquet(tmp_path / "empty.parquet", prompt=["x", None])
    with pytest.raises(ProviderError, match=r'empty.parquet, row 1: "prompt" is null  → fill it'):
        load_prompts(empty)
    with pytest.raises(ProviderError, match="there is no such file"):
        load_prompts(tmp_path / "none.parquet")
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 no")
    with pytest.raises(ProviderError, match="can't be read as Parquet"):
        load_prompts(broken)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    datasets = pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("datasets") / "saved"
    one = datasets.Dataset.from_dict({"frage": ["Hi", "Ho", "Hu"]})
    two = datasets.Dataset.from_dict({"frage": ["test"]})
    datasets.DatasetDict({"train": one, "test": two}).save_to_disk(str(folder))
    return folder


def inputs(dataset: DatasetConfig, columns: ColumnsConfig, limit: int | None = None) -> object:
    found = load_inputs(CollectConfig(dataset=dataset, columns=columns, max_prompts=limit, max_texts=limit))
    return found.prompts, found.texts


def test_a_dataset_that_was_saved(saved: Path) -> None:
    columns = ColumnsConfig(prompt="frage")
    assert load_prompts(saved, columns, 1) == (Prompt("0", user("Hi")),)  # named as a file would be
    assert inputs(DatasetConfig(path=saved), columns, 2) == ((Prompt("0", user("Hi")), Prompt("1", user("Ho"))), ())
    assert inputs(DatasetConfig(path=saved, split="test"), columns) == ((Prompt("0", user("test")),), ())
    as_texts = inputs(DatasetConfig(path=saved, split="test", gives="texts"), ColumnsConfig(text="frage"))
    assert as_texts == ((), (Text("0", "test"),))
    with pytest.raises(ProviderError, match=r'split "validation", can.t be loaded: .*check name or path, split'):
        inputs(DatasetConfig(path=saved, split="validation"), columns)


def test_a_folder_of_files_is_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "files").mkdir()
    parquet(tmp_path / "files" / "train.parquet", prompt=["Hi"])
    found = inputs(DatasetConfig(path=tmp_path / "files"), ColumnsConfig())
    assert found == ((Prompt("0", user("Hi")),), ())


def test_two_sources_of_one_thing_are_refused(tmp_path: Path) -> None:
    config = CollectConfig(prompts=tmp_path / "p.txt", dataset=DatasetConfig(name="a/b"))
    with pytest.raises(ProviderError, match=r"collect.prompts and \[collect.dataset\] both give prompts"):
        load_inputs(config)
    with pytest.raises(ValueError, match="give either name"):
        DatasetConfig(name="a/b", path=tmp_path)
