"""The rows of tables: Parquet files, and Hugging Face datasets (the extra `datasets`)."""

import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from bitnet_providers.config import DatasetConfig
from bitnet_providers.contract import ProviderError
from bitnet_providers.prompts.json_and_csv_rows import Row

INSTALL = "pip install 'bitnet-providers[datasets]'"


def parquet_rows(path: Path, columns: Collection[str]) -> Iterator[Row]:
    """The rows of a Parquet file, counted from 0. Raises ProviderError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.exists() and not path.is_file():  # pyarrow waits for ever for what a pipe will say
            raise OSError("not a file")
        with pq.ParquetFile(path) as file:
            wanted = _wanted(columns, file.schema_arrow.names, str(path))
            unread = [each for each in file.schema_arrow.names if each not in wanted]
            number = 0
            for batch in file.iter_batches(batch_size=1024, columns=wanted):
                for record in batch.to_pylist():
                    yield Row(f"row {number}", str(number), record, unread)
                    number += 1
    except FileNotFoundError:
        raise ProviderError(f"{path}: there is no such file", "correct the path, relative to the manifest") from None
    except (pa.ArrowException, OSError) as error:
        raise ProviderError(
            f"{path}: can't be read as Parquet: {' '.join(str(error).split())[:200]}",
            "get the file again, or name one that is Parquet",
        ) from None


def dataset_rows(dataset: DatasetConfig, columns: Collection[str]) -> Iterator[Row]:
    """The rows of one split of a Hugging Face dataset, counted from 0. Raises ProviderError."""
    table = _open(dataset)
    wanted = _wanted(columns, table.column_names, dataset_name(dataset))
    unread = [each for each in table.column_names if each not in wanted]
    for number, record in enumerate(table.select_columns(wanted)):
        yield Row(f"row {number}", str(number), record, unread)


def dataset_name(dataset: DatasetConfig) -> str:
    """``owner/name:train``, for people."""
    where, split = _place(dataset)
    return f"{where}:{split}"


def _place(dataset: DatasetConfig) -> tuple[str, str]:
    name, _, of_name = (dataset.name or "").partition(":")
    name = name.partition("@")[0]
    return name or str(dataset.path), dataset.split or of_name or "train"


def _open(dataset: DatasetConfig) -> Any:
    try:
        import datasets
    except ImportError:
        raise ProviderError("a dataset needs the package datasets, which is not installed", INSTALL) from None
    where, split = _place(dataset)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    if dataset.path is not None and not dataset.path.is_dir():
        raise ProviderError(f"collect.dataset.path: there is no folder {dataset.path}", "correct the path")
    try:
        if dataset.path is not None and _is_saved(dataset.path):
            loaded = datasets.load_from_disk(str(dataset.path))
            return loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded
        revision = dataset.revision or (dataset.name or "").partition(":")[0].partition("@")[2] or None
        return datasets.load_dataset(where, dataset.subset, split=split, revision=revision)
    except (OSError, ValueError, KeyError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ProviderError(
            f'the dataset "{where}", split "{split}", can\'t be loaded: {reason}',
            "check name or path, split and subset",
        ) from error


def _is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote it: one split, or several."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def _wanted(columns: Collection[str], there: Sequence[str], where: str) -> list[str]:
    """Those that may be wanted; a table may have others, of many GB."""
    wanted = [each for each in there if each in columns]
    if not wanted:
        raise ProviderError(
            f"{where}: no column is one that is read; it has {', '.join(there)}", "name yours in [collect.columns]"
        )
    return wanted
