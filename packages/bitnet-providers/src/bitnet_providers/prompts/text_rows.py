"""The rows of a text file by its ending.

A row is what its file says, unchecked: an object (a mapping by column), or a string where a row has no columns. What it
asks is found in `row_shapes`.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path

from bitnet_providers.contract import ProviderError
from bitnet_providers.prompts.csv_rows import csv_rows
from bitnet_providers.prompts.decompress_and_decode import COMPRESSED, lines_of, text_of
from bitnet_providers.prompts.json_rows import json_line_rows, json_rows, prompt_lines
from bitnet_providers.prompts.row import Row

NAMES = ".jsonl, .json, .csv, .tsv, .parquet or .txt (also with .gz behind it)"
"""What a data file may be called."""


def ending_of(path: Path) -> str:
    """``.jsonl`` of ``chats.JSONL.gz``."""
    return (Path(path.stem).suffix if path.suffix.lower() in COMPRESSED else path.suffix).lower()


def rows_of_text(path: Path, columns: Collection[str]) -> Iterator[Row]:
    """The rows of a text file; `columns` are those that may be wanted. Raises ProviderError where it can't be read."""
    ending = ending_of(path)
    if ending in _BY_LINE:
        return _BY_LINE[ending](lines_of(path), path, columns)
    read = _WHOLE.get(ending)
    if read is None and not path.exists():
        raise ProviderError(f"{path}: there is no such file or folder", "correct the path, relative to the manifest")
    if read is None:
        raise ProviderError(
            f"{path}: the ending says nothing about the format",
            f"name it {NAMES}, or name a folder that `datasets` saved",
        )
    return read(text_of(path), path, columns)


_BY_LINE: Mapping[str, Callable[[Iterable[str], Path, Collection[str]], Iterator[Row]]] = {
    ".jsonl": json_line_rows,
    ".jsonlines": json_line_rows,
    ".ndjson": json_line_rows,
    ".txt": prompt_lines,
}
"""Read as far as rows are wanted: a corpus may be larger than the memory."""
_WHOLE: Mapping[str, Callable[[str, Path, Collection[str]], Iterator[Row]]] = {
    ".json": json_rows,
    ".csv": csv_rows,
    ".tsv": csv_rows,
}
