"""Blocks as Markdown, with the figures beside it in ``reports/figures/``."""

import re
from collections.abc import Collection, Sequence

from bitnet_cli.report.blocks import (
    Block,
    Bullets,
    Cards,
    Code,
    Facts,
    Figure,
    Heading,
    SideBySide,
    Table,
    Text,
    Words,
    parts_of,
)

_SPECIAL = re.compile(r"([\\`*_\[\]<>#|])")


def to_markdown(blocks: Sequence[Block]) -> str:
    return "\n\n".join(_block(block) for block in blocks) + "\n"


def _block(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_plain(text)}"
        case Text(text, strong):
            return f"**{_words(text)}**" if strong else _words(text)
        case Bullets(items):
            return "\n".join(f"- {_words(item)}" for item in items)
        case Facts(rows):
            return _table(("", ""), list(map(_cells, rows)), False)
        case Cards(cards):
            return _table(
                ("figure", "value", ""), [_cells((each.label, each.value, each.note)) for each in cards], False
            )
        case Table(header, rows, numeric, marked, _):
            return _table(header, [_marked(_cells(row), number, marked) for number, row in enumerate(rows)], numeric)
        case SideBySide(header, rows):
            return _table(header, list(map(_cells, rows)), False)
        case Figure(name, caption, _):
            return f"![{_plain(caption)}](reports/figures/{name}.svg)"
        case Code(text, summary):
            fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
            code = f"{fence}\n{text.rstrip()}\n{fence}"
            return f"<details><summary>{_plain(summary)}</summary>\n\n{code}\n\n</details>" if summary else code
    raise TypeError(block)


def _table(header: Sequence[str], rows: list[list[str]], numeric: bool) -> str:
    rule = ["---", *(["---:" if numeric else "---"] * (len(header) - 1))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (_cells(header), rule, *rows))


def _marked(cells: list[str], row: int, marked: Collection[tuple[int, int]]) -> list[str]:
    return [f"**{cell}**" if (row, column) in marked else cell for column, cell in enumerate(cells)]


def _cells(cells: Sequence[Words]) -> list[str]:
    return [_words(cell).replace("\n", " ") for cell in cells]


def _words(words: Words) -> str:
    return "".join(
        _plain(part) if isinstance(part, str) else f"[{_plain(part.text)}]({part.href})" for part in parts_of(words)
    )


def _plain(text: str) -> str:
    """Text in which nothing is taken for markup: model answers hold anything."""
    return _SPECIAL.sub(r"\\\1", text)
