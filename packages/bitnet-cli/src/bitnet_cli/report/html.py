"""Blocks as one HTML file that asks nothing of the network and runs no script but its own.

What a teacher or a student said is escaped; should a mistake ever let a tag through, the page's content security
policy (one script, known by its hash; no address to load from) keeps it dead.
"""

import base64
import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import cache
from html import escape
from pathlib import Path

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
    plain,
)
from bitnet_cli.report.charts.chart_data import Chart, legend, unit_of
from bitnet_cli.report.charts.svg import draw, sample

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<nav><div class="top"><span class="brand">{brand}</span><div class="links">{links}</div>
<button id="theme" type="button" aria-label="Light or dark" title="Light or dark">◐</button></div></nav>
<main>
{body}
</main>
<script>
{script}</script>
</body>
</html>
"""
_BRAND = (
    '<svg viewBox="0 0 26 10" class="mark-of" aria-hidden="true"><rect width="8" height="10" rx="2" class="bar c0"/>'
    '<rect x="9" width="8" height="10" rx="2" class="bar nil"/><rect x="18" width="8" height="10" rx="2" '
    'class="bar c1"/></svg>'
)
"""−1, 0, +1."""
_LONG = 28
"""Characters of a cell that may wrap; a shorter one is a number or a word, and stays in a line."""
_PHONE = 46
"""Characters in a line of a phone."""


def to_html(blocks: Sequence[Block]) -> str:
    """The first heading is the page's title; headings of level 2 are the sections that one can jump to."""
    title = next((block.text for block in blocks if isinstance(block, Heading)), "BitNet KDE")
    names = [block.text for block in blocks if isinstance(block, Heading) and block.level == 2]
    script = _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(f"\n{script}".encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    return _PAGE.format(
        policy=policy,
        title=escape(title),
        style=_asset("page.css") + _asset("charts/drawing.css"),
        brand=_BRAND,
        links="".join(f'<a href="#{slug(name)}">{escape(name)}</a>' for name in names),
        body="\n".join(_sections(blocks)),
        script=script,
    )


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


@cache
def _asset(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _sections(blocks: Sequence[Block]) -> Iterator[str]:
    """A section for each heading of level 2; figures that follow each other share a grid."""
    is_open, rest = False, list(blocks)
    while rest:
        figures = _leading_figures(rest)
        if figures:
            after = rest[len(figures)] if len(rest) > len(figures) else None
            if len(figures) == 1 and len(figures[0].charts) == 1 and isinstance(after, Table) and not after.summary:
                kind = "beside" if len(after.header) < 4 else "beside wide"
                yield f'<div class="{kind}"><div class="figures one">{_block(figures[0])}</div>{_block(after)}</div>'
                rest = rest[2:]
            else:
                yield f'<div class="figures">{"".join(map(_block, figures))}</div>'
                rest = rest[len(figures) :]
            continue
        block, *rest = rest
        if isinstance(block, Heading) and block.level == 2:
            yield f'{"</section>" if is_open else ""}<section id="{slug(block.text)}">'
            is_open = True
        yield _block(block)
    if is_open:
        yield "</section>"


def _leading_figures(blocks: Sequence[Block]) -> list[Figure]:
    found: list[Figure] = []
    for block in blocks:
        if not isinstance(block, Figure):
            break
        found.append(block)
    return found


def _block(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{escape(text)}</h{level}>"
        case Text(text, strong):
            return f'<p class="lead">{_words(text)}</p>' if strong else f"<p>{_words(text)}</p>"
        case Bullets(items):
            return "<ul>" + "".join(f"<li>{_words(item)}</li>" for item in items) + "</ul>"
        case Facts(rows):
            inner = "".join(f"<div><dt>{escape(name)}</dt><dd>{_words(value)}</dd></div>" for name, value in rows)
            return f'<dl class="facts">{inner}</dl>'
        case Cards(cards):
            inner = "".join(
                f"<div><dt>{escape(each.label)}</dt><dd>{escape(each.value)}<small>{escape(each.note)}</small></dd></div>"
                for each in cards
            )
            return f'<dl class="cards">{inner}</dl>'
        case Table():
            return _table(block)
        case SideBySide():
            return _side_by_side(block)
        case Figure(name, caption, charts):
            narrow = len(charts) > 2
            inner = "".join(_chart(chart, narrow=narrow) for chart in charts)
            kind = "alone" if len(charts) == 1 else "narrow" if narrow else "pair"
            below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
            return f'<figure id="figure-{escape(name)}" class="{kind}"><div>{inner}</div>{below}</figure>'
        case Code(text, summary):
            code = (
                f'<div class="code"><button class="copy" type="button">Copy</button>'
                f'<pre tabindex="0">{escape(text.rstrip())}</pre></div>'
            )
            return f"<details><summary>{escape(summary)}</summary>{code}</details>" if summary else code
    raise TypeError(block)


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    lines = "".join(f"<tr>{''.join(_cells(table, number, row))}</tr>" for number, row in enumerate(table.rows))
    kind = ("numeric" if table.numeric else "words") + (" stack" if _is_wide(table) else "")
    html = (
        f'<div class="scroll" tabindex="0"><table class="{kind}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )
    return f"<details><summary>{escape(table.summary)}</summary>{html}</details>" if table.summary else html


def _is_wide(table: Table) -> bool:
    """Too wide for a phone, which shows its rows as lists. Heads wrap between words."""
    columns = zip(table.header, *table.rows, strict=True)
    widths = (max(*(len(plain(cell)) for cell in cells), *map(len, head.split()), 0, 0) for head, *cells in columns)
    return sum(width + 3 for width in widths) > _PHONE


def _cells(table: Table, number: int, row: Sequence[Words]) -> Iterator[str]:
    """Each with its column's name, which a narrow page writes beside it."""
    for column, (name, cell) in enumerate(zip(table.header, row, strict=True)):
        kinds = ["best"] if (number, column) in table.marked else []
        kinds += ["long"] if column and len(plain(cell)) > _LONG else []
        kind = f' class="{" ".join(kinds)}"' if kinds else ""
        yield f'<td{kind} data-label="{escape(name)}">{_words(cell)}</td>'


def _words(words: Words) -> str:
    return "".join(
        escape(part) if isinstance(part, str) else f'<a href="{escape(part.href)}">{escape(part.text)}</a>'
        for part in parts_of(words)
    )


def _side_by_side(block: SideBySide) -> str:
    questions = []
    for question, *answers in block.rows:
        said = "".join(
            f"<div><h4>{escape(who)}</h4><p>{escape(answer)}</p></div>"
            for who, answer in zip(block.header[1:], answers, strict=True)
        )
        questions.append(f'<article><p class="asked">{escape(question)}</p><div class="answers">{said}</div></article>')
    return f'<div class="samples">{"".join(questions)}</div>'


def _chart(chart: Chart, *, narrow: bool) -> str:
    unit = f" <span>{escape(unit_of(chart))}</span>" if unit_of(chart) else ""
    head = f"<h4>{escape(chart.title)}{unit}</h4>"
    return f'<div class="chart">{head}{_legend(chart)}{draw(chart, narrow=narrow).inline()}</div>'


def _legend(chart: Chart) -> str:
    """Above the drawing and in the page's own text, so that it wraps where the page is narrow."""
    items = "".join(
        f'<li><svg viewBox="0 0 22 8" aria-hidden="true">{sample(entry)}</svg>{escape(entry.label)}</li>'
        for entry in legend(chart)
    )
    return f'<ul class="legend">{items}</ul>' if items else ""
