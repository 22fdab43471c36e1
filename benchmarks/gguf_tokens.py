"""Does llama.cpp cut text as the student's tokenizer does? The table of docs/exports.md.

    uv run python -m benchmarks.gguf_tokens [FOLDER ...]

A row for each tokenizer of `benchmarks.real_tokenizers`, and for each FOLDER with a tokenizer.json: what an export of a
student with it would say. No student is made: llama.cpp is asked with a file that has the vocabulary alone.
"""

import argparse
import tempfile
from pathlib import Path

from benchmarks.real_tokenizers import NAMES, tokenizer_folder
from bitnet_core.errors import CoreError
from bitnet_core.export.gguf.compare_tokens import compared, probes
from bitnet_core.export.gguf.vocabulary import vocabulary_of
from bitnet_core.traces.tokenizer import load_tokenizer, vocabulary_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="tokenizer folders, beside the built-in ones")
    given = parser.parse_args().folders
    print("| tokenizer | chat template | model, pre-tokenizer in GGUF | texts compared | what the export says |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as under:
        for folder in [*given, *(tokenizer_folder(name, Path(under)) for name in NAMES)]:
            print(_row(folder), flush=True)


def _row(folder: Path) -> str:
    tokenizer = load_tokenizer(folder)
    template = "yes" if tokenizer.chat_template else "no"
    pre, count = "", ""
    try:
        found = vocabulary_of(tokenizer, vocabulary_size(tokenizer))
        pre, count = f"{found.model}, {found.pre}", str(len(probes(tokenizer, found)))
        found = compared(tokenizer, found)
        says = "; ".join(found.notes) or "the same tokens"
    except CoreError as error:
        says = f"refused: {error}"
    return f"| {folder.name} | {template} | {pre} | {count} | {says.replace('|', chr(92) + '|')} |"


if __name__ == "__main__":
    main()
