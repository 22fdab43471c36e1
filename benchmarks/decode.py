"""How fast does a ternary student talk, and how far is that from what the memory allows?

    uv run python -m benchmarks.decode                                   # about a quarter of an hour; prints JSON
    uv run python -m benchmarks.decode --bitnet-cpp BUILD --ik-llama BUILD   # beside these two: docs/runtime.md
    uv run python -m benchmarks.decode --figure docs/images/decode.svg   # a picture of benchmarks/results/decode.json

Random models with 400M and 1.5B linear weights, the same shape in the packed runtime, in llama.cpp's Q2_0, TQ2_0,
TQ1_0, Q4_0, Q8_0 and F16, in bitnet.cpp's and ik_llama.cpp's ternary types, and in torch's bfloat16; a prompt of 512
tokens, then decoding, with 1 and 2 threads, each in a process of its own. The best of each counts: on a machine that
does other things too it is the least disturbed. Decoding is timed twice in a process, and all have their turns in two
rounds (`--rounds`). The limit is what torch reads from memory (the sum of half a gigabyte), the best of the run.
`bandwidth_fraction` is (bytes that a token must read: weights, head, cache) x tokens/s over that. Needs 12 GB of disk.
With `--models FOLDER` what is measured is kept there, and the command goes on where `--seconds` stopped it.
"""

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.decode_models import (
    BLOCKS,
    CONTEXT,
    SHAPES,
    TERNARY,
    VOCABULARY,
    Shape,
    config,
    write_gguf,
    write_packed,
)
from benchmarks.decode_peers import PEERS, build_of, quantise, speeds

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks/results/decode.json"
PROMPT, WARM_UP, DECODE, REPEATS = 512, 16, 32, 2
THREADS = (1, 2)
RUNTIMES = ("packed", "torch bf16", *BLOCKS, *PEERS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", type=Path, metavar="SVG", help="draw the roofline of the stored result, and stop")
    parser.add_argument("--models", type=Path, metavar="FOLDER", help="where the models lie, or are made and kept")
    parser.add_argument("--bitnet-cpp", type=Path, metavar="BUILD", help="build folder of microsoft/BitNet")
    parser.add_argument("--ik-llama", type=Path, metavar="BUILD", help="build folder of ikawrakow/ik_llama.cpp")
    parser.add_argument(
        "--runtimes", nargs="+", choices=RUNTIMES, default=RUNTIMES, metavar="RUNTIME", help="only these"
    )
    parser.add_argument("--rounds", type=int, default=2, help="turns of each (2)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long, with exit status 3")
    parser.add_argument("--one", nargs=4, metavar=("RUNTIME", "SHAPE", "FILE", "BUILD"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    builds = {
        program: folder.resolve()
        for program in ("bitnet_cpp", "ik_llama")
        if (folder := getattr(options, program)) is not None
    }
    if options.figure:
        from benchmarks.decode_figure import draw

        draw(json.loads(RESULT.read_text()), options.figure)
    elif options.one:
        runtime, name, file, build = options.one
        shape = next(shape for shape in SHAPES if shape.name == name)
        print(json.dumps(measure(runtime, shape, Path(file), Path(build))))
    else:
        runtimes = [name for name in options.runtimes if name not in PEERS or PEERS[name].program in builds]
        turns = list(itertools.product(range(1, options.rounds + 1), SHAPES, runtimes, THREADS))
        with tempfile.TemporaryDirectory() as temporary:
            folder = options.models or Path(temporary)
            print(json.dumps(everything(folder, turns, builds, options.seconds), indent=1))


def everything(
    folder: Path, turns: Iterable[tuple[int, Shape, str, int]], builds: Mapping[str, Path], seconds: float
) -> dict[str, Any]:
    """The result; ends the program with status 3 where it would take more than `seconds`.

    turns: round, shape, runtime and threads of each measurement.
    """
    measured, stop = folder / "measured.jsonl", time.monotonic() + seconds
    rows = [json.loads(line) for line in measured.read_text().splitlines()] if measured.exists() else []
    done = {(row["model"], row["round"], row["runtime"], row["threads"]) for row in rows}
    for number, shape, runtime, threads in turns:
        if (shape.name, number, runtime, threads) in done:
            continue
        if time.monotonic() > stop:
            raise SystemExit(3)
        build = builds.get(PEERS[runtime].program, Path()) if runtime in PEERS else Path()
        file = model_file(folder, shape, runtime, build)
        row = {"model": shape.name, "runtime": runtime, "threads": threads, "round": number}
        rows.append(row | child(threads, runtime, shape.name, str(file), str(build)))
        with measured.open("a") as kept:
            kept.write(json.dumps(rows[-1]) + "\n")
        print(*rows[-1].values(), file=sys.stderr)
    table = best_of(rows)
    return summary(table) | {
        "table": table,
        "machine": f"{platform.system()} {platform.machine()}, {cpu_name()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("torch", "transformers", "xllamacpp", "bitnet-core")},
        "builds": {program: build_of(folder) for program, folder in builds.items()},
    }


def best_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each model, runtime and number of threads; its speeds are the best of all its turns."""
    kinds: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for row in rows:
        kinds.setdefault((row["model"], row["runtime"], row["threads"]), []).append(row)
    table = []
    for (model, runtime, threads), each in kinds.items():
        prefill, decode = ([x for row in each for x in row[key]] for key in ("prefill_each", "decode_each"))
        table.append(
            {
                "model": model,
                "runtime": runtime,
                "threads": threads,
                "prefill": max(prefill),
                "decode": max(decode),
                "prefill_each": prefill,
                "decode_each": decode,
                "bytes_per_token": each[0]["bytes_per_token"],
                "bandwidth": max(row["bandwidth"] for row in each),
            }
        )
    return table


def summary(table: list[dict[str, Any]]) -> dict[str, Any]:
    """The keys that are asked for, by model and threads; the worst of each in front."""
    rows = {(row["model"], row["threads"], row["runtime"]): row for row in table}
    figures: dict[str, dict[str, float]] = {
        "vs_tq2_0": {},
        "vs_bf16": {},
        "bandwidth_fraction": {},
        "prefill_vs_tq2_0": {},
        "vs_best_peer": {},
        "prefill_vs_best_peer": {},
    }
    for model, threads, runtime in rows:
        if runtime != "packed":
            continue
        ours, key = rows[model, threads, "packed"], f"{model}, {threads} threads"
        if tq2 := rows.get((model, threads, "tq2_0")):
            figures["vs_tq2_0"][key] = ours["decode"] / tq2["decode"]
            figures["prefill_vs_tq2_0"][key] = ours["prefill"] / tq2["prefill"]
        if bf16 := rows.get((model, threads, "torch bf16")):
            figures["vs_bf16"][key] = ours["decode"] / bf16["decode"]
        limit = max(row["bandwidth"] for row in table if row["threads"] == threads)
        figures["bandwidth_fraction"][key] = ours["bytes_per_token"] * ours["decode"] / limit
        peers = [row for (of, count, who), row in rows.items() if (of, count) == (model, threads) and who in PEERS]
        if peers:
            figures["vs_best_peer"][key] = ours["decode"] / max(row["decode"] for row in peers)
            figures["prefill_vs_best_peer"][key] = ours["prefill"] / max(row["prefill"] for row in peers)
    figures = {name: values for name, values in figures.items() if values}
    worst = {name: round(min(values.values()), 3) for name, values in figures.items()}
    return worst | {"each": {name: {key: round(x, 3) for key, x in values.items()} for name, values in figures.items()}}


def model_file(folder: Path, shape: Shape, runtime: str, build: Path) -> Path:
    if runtime == "packed":
        place = folder / shape.name
        if not place.exists():
            write_packed(place, shape)
        return place
    place = folder / f"{shape.name}-{runtime.replace(' ', '-')}.gguf"
    if place.exists() or runtime == "torch bf16":
        return place
    partial = place.with_suffix(".partial")
    if runtime in BLOCKS:
        write_gguf(partial, shape, runtime)
    else:
        quantise(build, PEERS[runtime].type_, model_file(folder, shape, "f16", build), partial)
    return partial.replace(place)


def child(threads: int, *arguments: str) -> dict[str, Any]:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "benchmarks.decode", "--one", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(runtime: str, shape: Shape, file: Path, build: Path) -> dict[str, Any]:
    """Tokens a second of the prompt and of decoding, and all that is needed to judge them."""
    bandwidth = read_bandwidth()
    if runtime in PEERS:
        threads = torch.get_num_threads()
        prefill, decode = speeds(build, file, threads=threads, prompt=PROMPT, decode=DECODE, repeats=REPEATS)
    else:
        how = {"packed": packed, "torch bf16": torch_bf16}.get(runtime, llama_cpp)
        once, decode = how(shape, file)
        prefill = [once]
    return {
        "prefill_each": [round(each, 1) for each in prefill],
        "decode_each": [round(each, 2) for each in decode],
        "bytes_per_token": bytes_per_token(shape, runtime),
        "bandwidth": round(max(bandwidth, read_bandwidth())),
    }


def read_bandwidth() -> float:
    """Bytes a second, the best of ten."""
    data, best = torch.ones(2**26, dtype=torch.int64), 0.0
    for _ in range(10):
        start = time.perf_counter()
        data.sum()
        best = max(best, data.nbytes / (time.perf_counter() - start))
    return best


def bytes_per_token(shape: Shape, runtime: str) -> int:
    """What decoding one token must read in the middle of the measured stretch."""
    cached = 2 * shape.layers * shape.kv_heads * 128 * (PROMPT + DECODE // 2)
    table = VOCABULARY * shape.hidden
    if runtime == "packed":
        rows = shape.layers * sum(outputs for outputs, _ in shape.linears().values())
        return shape.linear_weights // 4 + 4 * rows + table + 4 * VOCABULARY + CACHE_BYTES * cached
    weights, size, _ = BLOCKS.get(runtime, BLOCKS["f16"])
    head, head_size, _ = BLOCKS["q8_0"] if runtime in (*TERNARY, *PEERS) else (weights, size, 0)
    linears = shape.linear_weights * (PEERS[runtime].bits / 8 if runtime in PEERS else size / weights)
    return round(linears) + table * head_size // head + 2 * cached


CACHE_BYTES = 4
"""Of each key and value in the packed runtime."""


def prompt_ids(count: int) -> list[int]:
    return torch.randint(300, VOCABULARY, (count,), generator=torch.Generator().manual_seed(count)).tolist()


def packed(_: Shape, folder: Path) -> tuple[float, list[float]]:
    from bitnet_core.runtime.packed.cpu import CpuEngine
    from bitnet_core.runtime.packed.load_weights import packed_weights

    engine = CpuEngine(packed_weights(folder), context=CONTEXT)
    engine.logits(prompt_ids(WARM_UP), last=1)  # reads the file
    return timed(lambda ids: engine.logits(ids, last=1)[0])


def torch_bf16(shape: Shape, _: Path) -> tuple[float, list[float]]:
    from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

    from bitnet_core.model.kv_cache import named

    torch.set_default_dtype(torch.bfloat16)
    with torch.device("meta"):  # drawing random numbers would take longer than all the rest
        model = LlamaForCausalLM(config(shape, LlamaConfig)).eval()
    model.to_empty(device="cpu").tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    for parameter in model.parameters():
        parameter.data.fill_(0.01)
    cache = DynamicCache(config=model.config)

    @torch.inference_mode()
    def following(ids: list[int]) -> torch.Tensor:
        if cache.get_seq_length() >= len(ids):
            cache.crop(len(ids) - 1 - cache.get_seq_length())  # below 0: what goes
        new = torch.tensor([ids[cache.get_seq_length() :]])
        logits_V: torch.Tensor = model(input_ids=new, logits_to_keep=1, **named(cache)).logits[0, -1]
        return logits_V

    return timed(following)


def timed(following: Any) -> tuple[float, list[float]]:
    """Prompt tokens a second, and greedily decoded ones after it, each time anew."""
    ids = prompt_ids(PROMPT)
    start = time.perf_counter()
    ids.append(int(following(ids).argmax()))
    prefill, decode = PROMPT / (time.perf_counter() - start), []
    for _ in range(REPEATS):
        said = list(ids)
        start = time.perf_counter()
        for _ in range(DECODE):
            said.append(int(following(said).argmax()))
        decode.append(DECODE / (time.perf_counter() - start))
    return prefill, decode


def llama_cpp(_: Shape, file: Path) -> tuple[float, list[float]]:
    from bitnet_core.runtime.llamacpp.server import llama_cpp as opened

    with opened(file, context=PROMPT + DECODE + 16, threads=torch.get_num_threads()) as server:
        body = {"n_predict": DECODE + 1, "ignore_eos": True, "cache_prompt": True, "samplers": ["top_k"], "top_k": 1}
        server.post("/completion", body | {"prompt": prompt_ids(WARM_UP), "n_predict": 2})
        # The second time it has the prompt in its cache.
        times = [server.post("/completion", body | {"prompt": prompt_ids(PROMPT)})["timings"] for _ in range(REPEATS)]
    assert times[0]["prompt_n"] >= PROMPT - 1, times
    return times[0]["prompt_per_second"], [each["predicted_per_second"] for each in times]


def cpu_name() -> str:
    return str(torch.cpu.get_capabilities().get("cpu_name", platform.processor()))


if __name__ == "__main__":
    main()
