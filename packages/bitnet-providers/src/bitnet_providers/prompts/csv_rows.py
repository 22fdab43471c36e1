"""The rows of a CSV file."""

import csv
import io
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from bitnet_providers.contract import ProviderError
from bitnet_providers.prompts.row import Row

_SEPARATOR = re.compile(r"\s*sep=([,;\t|])\r?\n")


def csv_rows(text: str, path: Path, columns: Collection[str]) -> Iterator[Row]:
    """Comma, semicolon or tab, whichever the header has; fields in quotes may hold lines."""
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    said = _SEPARATOR.match(text)  # Excel's own line before the header
    text = text if said is None else "\n" + text[said.end() :]
    header = text.lstrip().partition("\n")[0]
    delimiter = _likely_delimiter(header, columns) if said is None else said[1]
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
            if twice := sorted({each for each in names if each and names.count(each) > 1}):
                raise ProviderError(
                    f"{path}:{line}: two columns are called {twice[0]!r}", "give each column a name of its own"
                )
            continue
        value: Any = dict(zip(names, (each or None for each in fields), strict=False))
        if len(fields) > len(names):
            value = ProviderError(f"{len(fields)} fields, and the header has {len(names)}", "quote fields with commas")
        yield Row(f"line {line}", str(line), value)


def _likely_delimiter(header: str, columns: Collection[str]) -> str:
    return max(",;\t", key=lambda each: (len({*_names(header, each)} & set(columns)), header.count(each)))


def _names(header: str, delimiter: str) -> list[str]:
    return [each.strip().strip('"') for each in header.split(delimiter)]
