"""How much work is a token in each of llama.cpp's ternary types? The last column of a table in docs/exports.md.

    uv run python -m benchmarks.gguf_types

Tokens for each second of CPU time (not of the clock: the machine may do other things too) of llama.cpp on one thread,
in a prompt of 128 and in decoding 24 behind it, on a random model with 400M linear weights. Needs Linux, and 0.5 GB of
disk.
"""

import os
import tempfile
from pathlib import Path

import torch

from benchmarks.decode_models import SHAPES, TERNARY, VOCABULARY, write_gguf
from bitnet_core.runtime.llamacpp.server import LlamaCpp, llama_cpp

PROMPT, DECODED, ROUNDS = 128, 24, 2


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        files = {type_: Path(folder) / f"{type_}.gguf" for type_ in TERNARY}
        for type_, file in files.items():
            write_gguf(file, SHAPES[0], type_)
        for number in range(ROUNDS):
            for type_, file in files.items():
                prompt, decoding = measured(file)
                print(f"round {number + 1}, {type_}: {decoding:.1f} decoding, {prompt:.1f} prompt", flush=True)


def measured(file: Path) -> tuple[float, float]:
    """Tokens for each CPU second of a prompt, and of decoding."""
    ids = torch.randint(300, VOCABULARY, (PROMPT,), generator=torch.Generator().manual_seed(1)).tolist()
    with llama_cpp(file, context=512) as llama:
        work(llama, ids[:8], 2)  # reads the file
        prompt, whole = work(llama, ids, 1), work(llama, ids, DECODED + 1)
    return PROMPT / prompt, DECODED / max(whole - prompt, 1e-9)


def work(llama: LlamaCpp, ids: list[int], count: int) -> float:
    """CPU seconds that a greedy answer of `count` tokens takes."""
    before = cpu_seconds(llama.process.pid)
    body = {"prompt": ids, "n_predict": count, "temperature": 0.0, "cache_prompt": False, "ignore_eos": True}
    llama.post("/completion", body)
    return cpu_seconds(llama.process.pid) - before


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
