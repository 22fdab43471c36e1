"""Prompts and texts out of tables: Parquet files, and Hugging Face datasets (the extra `datasets`).

A row becomes the record that a line of ``.jsonl`` holds, so the same checks apply. Which column holds what is said in
``[collect.columns]``. A conversation that ends with an answer is asked without it: what is wanted is the teacher's.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bitnet_providers.config import ColumnsConfig, DatasetConfig
from bitnet_providers.contract import ProviderError

INSTALL = "pip install 'bitnet-providers[datasets]'"
Located = tuple[str, Mapping[str, Any]]
"""(where a row stands, for people; its record)"""


def parquet_records(path: Path, columns: ColumnsConfig, what: str, limit: int | None) -> Iterator[Located]:
    """The rows of a Parquet file. `what` is "prompt" or "text". Raises ProviderError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            wanted = _pick(columns, what, file.schema_arrow.names, str(path))
            batches = file.iter_batches(batch_size=1024, columns=list(wanted.values()))
            yield from _records((row for batch in batches for row in batch.to_pylist()), wanted, str(path), limit)
    except FileNotFoundError:
        raise ProviderError(f"{path}: there is no such file", "correct the path, relative to the manifest") from None
    except (pa.ArrowException, OSError) as error:
        raise ProviderError(
            f"{path}: can't be read as Parquet: {' '.join(str(error).split())[:200]}",
            "get the file again, or name one that is Parquet",
        ) from None


def dataset_records(dataset: DatasetConfig, columns: ColumnsConfig, what: str, limit: int | None) -> Iterator[Located]:
    """The rows of one split of a Hugging Face dataset. Raises ProviderError."""
    table, name = _open(dataset)
    if limit is not None:
        table = table.select(range(min(limit, len(table))))
    wanted = _pick(columns, what, table.column_names, name)
    yield from _records(iter(table), wanted, name, limit)


def _open(dataset: DatasetConfig) -> tuple[Any, str]:
    try:
        import datasets
    except ImportError:
        raise ProviderError("[collect.dataset] needs the package datasets, which is not installed", INSTALL) from None
    name, _, of_name = (dataset.name or "").partition(":")
    split = dataset.split or of_name or "train"
    where = name or str(dataset.path)
    if dataset.path is not None and not dataset.path.is_dir():
        raise ProviderError(f"collect.dataset.path: there is no folder {dataset.path}", "correct the path")
    try:
        if dataset.path is not None and _is_saved(dataset.path):
            loaded = datasets.load_from_disk(str(dataset.path))
            if isinstance(loaded, datasets.DatasetDict):
                loaded = loaded[split]
        else:
            source = name or str(dataset.path)
            loaded = datasets.load_dataset(source, dataset.subset, split=split, revision=dataset.revision)
    except (OSError, ValueError, KeyError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ProviderError(
            f'[collect.dataset] "{where}", split "{split}", can\'t be loaded: {reason}',
            "check name or path, split and subset",
        ) from error
    return loaded, f"{where}:{split}"


def _is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote it: one split, or several."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def _pick(columns: ColumnsConfig, what: str, there: Sequence[str], where: str) -> dict[str, str]:
    """The record's key → the column that holds it."""
    if what == "text":
        content = {"text": columns.text}
    elif columns.messages is not None or (columns.prompt is None and "messages" in there):
        content = {"messages": columns.messages or "messages"}
    else:
        content = {"prompt": columns.prompt or "prompt"}
    for key, column in {**content, **({"id": columns.id} if columns.id is not None else {})}.items():
        if column not in there:
            raise ProviderError(
                f'{where}: there is no column "{column}"', f"set collect.columns.{key} to one of {', '.join(there)}"
            )
    optional = {"id": columns.id or "id", "format": columns.format}
    return content | {key: column for key, column in optional.items() if column in there}


def _records(
    rows: Iterator[Mapping[str, Any]], columns: Mapping[str, str], where: str, limit: int | None
) -> Iterator[Located]:
    for number, row in enumerate(rows):
        if limit is not None and number >= limit:
            return
        record = {key: row[column] for key, column in columns.items()}
        record["id"] = str(number) if record.get("id") is None else str(record["id"])
        if "messages" in record:
            record["messages"] = _conversation(record["messages"])
        yield f"{where}, row {number}", record


def _conversation(messages: Any) -> Any:
    """Only what a message needs, without an answer at the end. What is no conversation is left for the checks."""
    if not isinstance(messages, list):
        return messages
    plain = [
        {"role": each.get("role"), "content": each.get("content")} if isinstance(each, dict) else each
        for each in messages
    ]
    return plain[:-1] if len(plain) > 1 and isinstance(plain[-1], dict) and plain[-1]["role"] == "assistant" else plain
