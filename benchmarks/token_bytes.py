"""Are a tokenizer's bytes, id by id, what the tokenizer itself decodes?

    python -m benchmarks.token_bytes [FOLDER ...] [--draws 2000]

For the tokenizers of `benchmarks.real_tokenizers`, and for any folder named. Compared with ``tokenizer.decode`` of the
same ids: whole texts (those of benchmarks/texts, and code with indentation), then `draws` sequences of 8 ids drawn from
all that are not special, added ones among them. Both sides begin with the ids of "a", since the first token may lose a
space. The last column is whether transformers cuts these texts as the folder's own tokenizer.json does.

It prints the table of docs/projection.md; the last line is one JSON object.
"""

import argparse
import json
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import transformers

from benchmarks.real_tokenizers import NAMES, tokenizer_folder
from bitnet_core.traces.tokenizer import cuts_otherwise, id_to_bytes, load_tokenizer, special_ids

CODE = (
    "def f(x):\n    if x > 10:\n        return x ** 2  # naïve\n\n\n    return None\n",
    "\tfor i in range(3):\n\t\tprint(i)\r\n        \n",
    "- two  spaces,   three    four\n    - 1815 🦄 猫が好き\n\n\n\n",
)


def texts() -> Iterator[str]:
    yield from CODE
    for file in sorted((Path(__file__).parent / "texts").glob("*.txt")):
        yield from file.read_text(encoding="utf-8").split("\n\n")


def row(name: str, folder: Path, draws: int) -> dict[str, Any]:
    tokenizer = load_tokenizer(folder)
    table, special = id_to_bytes(tokenizer), set(special_ids(tokenizer))
    plain = np.array([id_ for id_ in range(len(table)) if id_ not in special])
    before: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    rng = np.random.default_rng(0)
    whole = [[*before, *tokenizer(text, add_special_tokens=False)["input_ids"]] for text in texts()]
    drawn = [[*before, *rng.choice(plain, 8).tolist()] for _ in range(draws)]

    def differs(ids: list[int]) -> bool:
        spelt = b"".join(table[id_] for id_ in ids).decode("utf-8", "replace")
        return spelt.removeprefix(" ") != str(tokenizer.decode(ids)).removeprefix(" ")

    return {
        "tokenizer": name,
        "class": type(tokenizer).__name__,
        "ids": len(table),
        "added, not special": sum(not token.special for token in tokenizer.added_tokens_decoder.values()),
        "texts": len(whole),
        "tokens": sum(len(ids) for ids in whole),
        "texts differing": sum(map(differs, whole)),
        "drawn": len(drawn),
        "drawn differing": sum(map(differs, drawn)),
        "cuts as its file": cuts_otherwise(folder, tokenizer) is None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--draws", type=int, default=2000)
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as under:
        folders = {name: tokenizer_folder(name, Path(under)) for name in NAMES if name != "nfkc"}
        for name, folder in [*folders.items(), *((folder.name, folder) for folder in options.folders)]:
            results.append(row(name, folder, options.draws))
            if len(results) == 1:
                print("| " + " | ".join(results[0]) + " |\n" + "|---" * len(results[0]) + "|")
            shown = (f"{each:,}" if type(each) is int else str(each) for each in results[-1].values())
            print("| " + " | ".join(shown) + " |", flush=True)
    versions = {
        "python": platform.python_version(),
        "tokenizers": tokenizers.__version__,
        "transformers": transformers.__version__,
    }
    print(json.dumps({"results": results, "options": {"draws": options.draws}, "versions": versions}))


if __name__ == "__main__":
    main()
