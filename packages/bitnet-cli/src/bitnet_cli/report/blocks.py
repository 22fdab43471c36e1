"""What a report is made of. Two small writers turn the same blocks into Markdown and HTML."""

from collections.abc import Callable, Iterable

import attrs

from bitnet_cli.report.charts.chart_data import Chart

DAMAGED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What comes of a file with other types than it was written with."""


@attrs.frozen
class Link:
    text: str
    href: str
    """``#section``, a path from the run folder as a URL writes it, or an address."""


Words = str | Link | tuple[str | Link, ...]
"""Plain text, of which some may lead somewhere: nothing in it is markup."""


def plain(words: Words) -> str:
    """What a reader sees of it."""
    return "".join(part if isinstance(part, str) else part.text for part in parts_of(words))


def parts_of(words: Words) -> tuple[str | Link, ...]:
    return words if isinstance(words, tuple) else (words,)


@attrs.frozen
class Heading:
    text: str
    level: int = 2


@attrs.frozen
class Text:
    """A paragraph."""

    text: Words
    strong: bool = False


@attrs.frozen
class Bullets:
    items: tuple[Words, ...]


@attrs.frozen
class Facts:
    """What a reader wants to know first: a name and its value each."""

    rows: tuple[tuple[str, Words], ...]


@attrs.frozen
class Card:
    """A figure to be seen at a glance."""

    label: str
    value: str
    note: str = ""


@attrs.frozen
class Cards:
    cards: tuple[Card, ...]


@attrs.frozen
class Table:
    """Columns after the first are numbers or short words, set to the right where `numeric`."""

    header: tuple[str, ...]
    rows: tuple[tuple[Words, ...], ...]
    numeric: bool = True
    marked: frozenset[tuple[int, int]] = frozenset()
    """(row, column) of the cells to be set off, such as the best of a row."""
    summary: str = ""
    """Where given, the page folds the table under this line."""


@attrs.frozen
class SideBySide:
    """The answers of several models to the same question. A row: the question, then its answers."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@attrs.frozen
class Figure:
    """One chart or several of a kind; as a picture it is ``reports/figures/NAME.svg``."""

    name: str
    caption: str
    charts: tuple[Chart, ...]


@attrs.frozen
class Code:
    """Text as it is: a manifest, a model's answer."""

    text: str
    summary: str = ""
    """Where given, the text is folded under this line."""


Block = Heading | Text | Bullets | Facts | Cards | Table | SideBySide | Figure | Code


def readable(section: Callable[[], Iterable[Block]]) -> tuple[Block, ...]:
    """Its blocks; a line in their place where what they are made of is damaged."""
    try:
        return tuple(section())
    except DAMAGED as error:
        told = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return (Text(f"A section is left out: a file of this run is damaged ({told})."),)
