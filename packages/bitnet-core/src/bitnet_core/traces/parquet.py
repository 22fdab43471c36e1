"""Parquet files that appear whole or not at all, and whose damage is told by name. R rows, K candidates."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bitnet_core.errors import CoreError
from bitnet_core.files import atomic_file, by_number


def shard_files(folder: Path, pattern: str, made_by: str) -> list[Path]:
    """The files of `folder` that match `pattern`, in order. Raises CoreError where there are none."""
    if not folder.is_dir():
        raise CoreError(f"{folder}: no such folder", f"run {made_by} first")
    files = sorted(folder.glob(pattern), key=by_number)
    if not files:
        raise CoreError(f"{folder}: no file {pattern} in it", f"run {made_by} first")
    return files


@contextmanager
def damage_named(file: Path, made_by: str) -> Iterator[None]:
    """Turn what a broken file raises into a CoreError that names the file and the stage to repeat.

    That is pyarrow's own errors, and those of columns with other names or types than were written.
    """
    try:
        yield
    except (pa.ArrowException, OSError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()
        raise CoreError(
            f"{file}: cannot be read as Parquet ({reason[0] if reason else type(error).__name__}), so it is "
            "damaged or incomplete",
            f"restore it from a copy, or delete it and run {made_by} again",
        ) from error


def open_parquet(file: Path, made_by: str, read_dictionary: Sequence[str] = ()) -> pq.ParquetFile:
    """Open by path: pyarrow reads a Python file object in a thread that may outlive the interpreter and abort it."""
    with damage_named(file, made_by):
        if not file.is_file():  # pyarrow waits for ever for what a pipe will say
            raise OSError("not a file")
        return pq.ParquetFile(str(file), page_checksum_verification=True, read_dictionary=list(read_dictionary))


@contextmanager
def atomic_writer(file: Path, schema: pa.Schema, **options: Any) -> Iterator[pq.ParquetWriter]:
    """A Parquet writer whose file takes its name only when all of it is on disk.

    zstd, with page checksums. Raises CoreError where the disk refuses; where anything is raised nothing is left.
    """
    try:
        with (
            atomic_file(file) as partial,
            pq.ParquetWriter(
                str(partial), schema, compression="zstd", write_page_checksum=True, version="2.6", **options
            ) as writer,
        ):
            yield writer
    except OSError as error:
        raise CoreError(
            f"{file}: cannot be written ({error})", "free space or correct the folder, then run again"
        ) from error


def whole(column: pa.ChunkedArray) -> pa.Array:
    """One contiguous array; no copy where the column has one chunk."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def list_lengths(array: pa.Array) -> NDArray[np.int64]:
    """Elements of each list; 0 where the list is null."""
    return np.asarray(pc.fill_null(pc.list_value_length(array), 0), dtype=np.int64)


def flat_values(array: pa.Array) -> NDArray[Any]:
    """The elements of all lists, a view of Arrow's buffer where nothing is null; a null float becomes NaN."""
    values: NDArray[Any] = array.flatten().to_numpy(zero_copy_only=False)
    return values
