"""Blocks as one HTML file that asks nothing of the network: images inlined, light and dark by the reader's choice."""

import base64
from collections.abc import Mapping, Sequence
from html import escape

from bitnet_cli.report.blocks import Block, Bullets, Code, Figure, Heading, Table, Text

_STYLE = """
:root { color-scheme: light dark; --text: #1c2430; --soft: #5b6675; --line: #d9dee6; --back: #ffffff; --box: #f5f7fa; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e8ee; --soft: #9aa6b5; --line: #333c49; --back: #14181e; --box: #1d232c; }
}
body { font: 16px/1.55 system-ui, sans-serif; color: var(--text); background: var(--back);
       max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; margin: 2rem 0 .6rem; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .8rem; text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
table.numeric td + td, table.numeric th + th { text-align: right; font-variant-numeric: tabular-nums; }
pre { background: var(--box); padding: .8rem; overflow-x: auto; border-radius: 6px; white-space: pre-wrap; }
figure { margin: 1rem 0; } figure img { max-width: 100%; background: #fff; border-radius: 6px; }
figcaption, summary { color: var(--soft); }
"""


def to_html(blocks: Sequence[Block], figures: Mapping[str, bytes], title: str) -> str:
    """`figures` maps names to PNG bytes."""
    body = "\n".join(_block(block, figures) for block in blocks)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _block(block: Block, figures: Mapping[str, bytes]) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{escape(text)}</h{level}>"
        case Text(text, strong):
            return f"<p><strong>{escape(text)}</strong></p>" if strong else f"<p>{escape(text)}</p>"
        case Bullets(items):
            return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"
        case Table(header, rows, numeric):
            head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
            lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
            kind = ' class="numeric"' if numeric else ""
            return f"<table{kind}><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"
        case Figure(name, caption):
            data = base64.b64encode(figures[name]).decode()
            picture = f'<img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
            return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>"
        case Code(text, summary):
            code = f"<pre>{escape(text.rstrip())}</pre>"
            return f"<details><summary>{escape(summary)}</summary>{code}</details>" if summary else code
    raise TypeError(block)
