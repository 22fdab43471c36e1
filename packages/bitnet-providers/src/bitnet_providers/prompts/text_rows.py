"""The rows of a text file by its ending, and how its bytes become text.

A row is what its file says, unchecked: an object (a mapping by column), or a string where a row has no columns. What it
asks is found in `row_shapes`. Any of UTF-8, UTF-16 and UTF-32, with or without a byte-order mark; ``.gz``, ``.bz2`` and
``.zst`` around any of them.
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from bitnet_providers.contract import ProviderError
from bitnet_providers.prompts.csv_rows import csv_rows
from bitnet_providers.prompts.json_rows import json_line_rows, json_rows, lines_of_text
from bitnet_providers.prompts.row import Row

COMPRESSED = (".gz", ".bz2", ".zst")
NAMES = ".jsonl, .json, .csv, .tsv, .parquet or .txt (also with .gz behind it)"
"""What a data file may be called."""


def ending_of(path: Path) -> str:
    """``.jsonl`` of ``chats.JSONL.gz``."""
    return (Path(path.stem).suffix if path.suffix.lower() in COMPRESSED else path.suffix).lower()


def rows_of_text(path: Path, columns: Collection[str]) -> Iterator[Row]:
    """The rows of a text file; `columns` are those that may be wanted. Raises ProviderError where it can't be read."""
    read = _READERS.get(ending_of(path))
    if read is None:
        raise ProviderError(
            f"{path}: the ending says nothing about the format",
            f"name it {NAMES}, or name a folder that `datasets` saved",
        )
    return read(_text(path), path, columns)


def _text(path: Path) -> str:
    try:
        data = _decompressed(path) if path.suffix.lower() in COMPRESSED else path.read_bytes()
    except FileNotFoundError:
        raise ProviderError(f"{path}: there is no such file", "correct the path, relative to the manifest") from None
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())[:200]
        raise ProviderError(
            f"{path}: can't be read: {reason}", "see that it is a whole file, and that you may read it"
        ) from None
    encoding = json.detect_encoding(data)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ProviderError(f"{path}:{line}: not {encoding.upper()[:6]}", "save the file in UTF-8") from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ProviderError(f"{path}:{line}: holds a NUL character, as no text does", "save the file in UTF-8")
    return text


def _decompressed(path: Path) -> bytes:
    import pyarrow as pa  # here: `bitnet plan` is quick without it

    with pa.input_stream(str(path), compression="detect") as stream:
        return bytes(stream.read())


_READERS: Mapping[str, Callable[[str, Path, Collection[str]], Iterator[Row]]] = {
    ".jsonl": json_line_rows,
    ".ndjson": json_line_rows,
    ".json": json_rows,
    ".csv": csv_rows,
    ".tsv": csv_rows,
    ".txt": lines_of_text,
}
