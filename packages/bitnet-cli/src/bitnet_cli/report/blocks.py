"""What a report is made of. Two small writers turn the same blocks into Markdown and HTML."""

import attrs


@attrs.frozen
class Heading:
    text: str
    level: int = 2


@attrs.frozen
class Text:
    """A paragraph of plain text: nothing in it is markup."""

    text: str
    strong: bool = False


@attrs.frozen
class Bullets:
    items: tuple[str, ...]


@attrs.frozen
class Table:
    """Columns after the first are numbers or short words, set to the right where `numeric`."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: bool = True


@attrs.frozen
class Figure:
    name: str
    """The picture is ``reports/figures/NAME.png``."""
    caption: str


@attrs.frozen
class Code:
    """Text as it is: a manifest, what a model said."""

    text: str
    summary: str = ""
    """Where given, the text is folded under this line."""


Block = Heading | Text | Bullets | Table | Figure | Code
