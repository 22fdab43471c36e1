"""bitnet.cpp and ik_llama.cpp on the models of `benchmarks.decode`: their own quantiser and their own benchmark.

Both are built outside this tree, targets ``llama-quantize`` and ``llama-batched-bench``; docs/runtime.md says how.
Their files are made from the float16 one, which holds -1, 0 and 1 times a scale, with the table, which is the head too,
in q8_0 as beside TQ2_0. The benchmark decodes behind the prompt, as the others here do.
"""

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import attrs


@attrs.frozen
class Peer:
    """A ternary type of another program."""

    program: str
    """The option that names its build folder."""
    type_: str
    """As its quantiser calls it."""
    bits: float
    """Of a weight."""


PEERS: Mapping[str, Peer] = {
    "bitnet.cpp i2_s": Peer("bitnet_cpp", "I2_S", 2),
    "ik_llama.cpp iq2_bn_r4": Peer("ik_llama", "IQ2_BN_R4", 2),
    "ik_llama.cpp iq2_bn": Peer("ik_llama", "IQ2_BN", 2),
    "ik_llama.cpp iq1_bn": Peer("ik_llama", "IQ1_BN", 1.625),
}
"""By the name of the runtime in the table."""


def quantise(build: Path, type_: str, f16: Path, file: Path) -> None:
    kinds = [word for tensor in ("--token-embedding-type", "--output-tensor-type") for word in (tensor, "q8_0")]
    command = [str(build / "bin/llama-quantize"), *kinds, str(f16), str(file), type_, str(os.cpu_count())]
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)


def speeds(
    build: Path, file: Path, *, threads: int, prompt: int, decode: int, repeats: int
) -> tuple[list[float], list[float]]:
    """Prompt tokens a second, and decoded ones behind it, of each repeat."""
    sizes = {"-c": 2 * (prompt + decode), "-npp": prompt, "-ntg": decode, "-npl": ",".join(["1"] * repeats)}
    words = [str(word) for pair in {**sizes, "-t": threads}.items() for word in pair]
    command = [str(build / "bin/llama-batched-bench"), "-m", str(file.resolve()), *words]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "MKL_"))}
    # bitnet.cpp keeps a product of all rows and 512 tokens on the stack of its thread: 8 MB aren't enough for it.
    done = subprocess.run(
        ["bash", "-c", 'ulimit -s unlimited && exec "$@"', "bash", *command],
        cwd=file.parent,  # ik_llama.cpp leaves a log where it runs
        env=environment | {"OMP_STACKSIZE": "256M"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    found = rows_of(done.stdout, prompt, decode)
    if len(found) != repeats:
        raise SystemExit(f"{command[0]} printed no speeds:\n{done.stdout[-2000:]}")
    return [row[0] for row in found], [row[1] for row in found]


def rows_of(printed: str, prompt: int, decode: int) -> list[tuple[float, float]]:
    """(S_PP, S_TG) of its table: PP, TG, B, N_KV, T_PP, S_PP, T_TG, S_TG, T, S."""
    found = []
    for line in re.findall(r"\|((?:\s*[\d.]+\s*\|){10})", printed):
        cells = [float(cell) for cell in line.split("|")[:10]]
        if cells[:2] == [prompt, decode]:
            found.append((cells[5], cells[7]))
    return found


def build_of(folder: Path) -> dict[str, str]:
    """What CMake's cache says of a build: the commit of its sources, the compiler, and the options that were set."""
    cache = dict(re.findall(r"^(\w+):\w+=(.*)$", (folder / "CMakeCache.txt").read_text(), re.MULTILINE))
    command = ["git", "-C", cache["CMAKE_HOME_DIRECTORY"], "rev-parse", "HEAD"]
    compiler = subprocess.run([cache["CMAKE_CXX_COMPILER"], "--version"], capture_output=True, text=True, check=True)
    options = ("CMAKE_BUILD_TYPE", "GGML_NATIVE", "GGML_OPENMP", "GGML_IQK_FA_ALL_QUANTS", "BITNET_X86_TL2")
    return {
        "commit": subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip(),
        "compiler": compiler.stdout.splitlines()[0],
        "options": " ".join(f"-D{name}={cache[name]}" for name in options if name in cache),
    }
