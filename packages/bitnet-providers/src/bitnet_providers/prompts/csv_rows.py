"""The rows of a CSV file."""

import csv
import io
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from bitnet_providers.contract import ProviderError
from bitnet_providers.prompts.row import Row


def csv_rows(text: str, path: Path, columns: Collection[str]) -> Iterator[Row]:
    """Comma, semicolon or tab, whichever the header has; fields in quotes may hold lines."""
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    header = text.lstrip().partition("\n")[0]
    delimiter = max(",;\t", key=lambda each: (len({*_names(header, each)} & set(columns)), header.count(each)))
    table = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] = []
    before = 0
    while True:
        try:
            fields = next(table, None)
        except csv.Error as error:
            raise ProviderError(
                f"{path}:{before + 1}: not CSV ({error})",
                'mend the row that begins there: a field with a quote in it is written "so ""quoted"" it is"',
            ) from None
        line, before = before + 1, table.line_num
        if fields is None:
            return
        if not any(each.strip() for each in fields):
            continue
        if not names:
            names = [each.strip() for each in fields]
            if twice := sorted({each for each in names if names.count(each) > 1}):
                raise ProviderError(
                    f"{path}:{line}: two columns are called {twice[0]!r}", "give each column a name of its own"
                )
            continue
        value: Any = dict(zip(names, (each or None for each in fields), strict=False))
        if len(fields) > len(names):
            value = ProviderError(f"{len(fields)} fields, and the header has {len(names)}", "quote fields with commas")
        yield Row(f"line {line}", str(line), value)


def _names(header: str, delimiter: str) -> list[str]:
    return [each.strip().strip('"') for each in header.split(delimiter)]
