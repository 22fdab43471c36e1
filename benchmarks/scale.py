"""How do collection, traces and training grow?

    python -m benchmarks.scale [collection] [dataset] [training]
        [--requests 4800] [--millions 1 10 100] [--scratch FOLDER]

collection: so many requests, by 1, 2, 4 and 8 workers (the launcher `local`: processes of this machine), each with its
part of them (`--shard i/n`), its journal and its ledger, against a loopback server that answers after 50 ms. A worker
has 2 requests under way at any time: then 8 workers wait most of the time, and what is measured is not how many
processors this machine has. `seconds` is from the first request to the last shard of the merged folder (as
`bitnet traces merge` makes it); starting the workers (Python, imports) is told apart, as a cluster's start would be.
`collection_efficiency` is the throughput of 8 workers over 8 times that of one.
dataset: 1, 10 and 100 million positions of KD shards, written by the project stage's own writer: documents of 200
positions, K = 8, whose candidates repeat after 5,000 positions, so that all fit on a disk (no start reads them). In a
fresh process: seconds until `KDTraceDataset` is there with all its checks, until the first epoch is shuffled, and
resident bytes beyond those of the imports (at the end, and the peak). Each is measured twice, and the second counts:
the files are in the machine's memory then. Linux only.
training: 1, 2 and 4 processes on this machine (gloo), one step of the ordinary loop: the bytes that a process hands to
others, seen by intercepting every collective, beside what FSDP must send: 4 bytes for each parameter of a layer
gathered forward, gathered backward and its gradient scattered, the last of which rings cost (N - 1)/N; embedding, head
and last norm stay gathered from forward to backward. The difference between trainings of 2 and 6 steps, over 4.
The last line is one JSON object.
"""

import argparse
import asyncio
import itertools
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np

ROOT = Path(__file__).parents[1]

GOALS = {
    "collection_efficiency": "at least 0.9",
    "start_seconds": "at most 10 for 100 million positions, shuffling counted",
    "resident_megabytes": "at most 200 for 100 million positions, beyond the imports",
    "start_growth": "at most 10 from one size to ten times it",
    "sent_over_needed": "near 1",
}
WORKERS = (1, 2, 4, 8)
LATENCY_S = 0.05
CONCURRENCY = 2
"""Requests that a worker has under way."""

DOCUMENT, K, PER_FILE, REPEAT = 200, 8, 1_000_000, 5_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="collection, dataset, training (none: all)")
    parser.add_argument("--requests", type=int, default=4800)
    parser.add_argument("--millions", type=float, nargs="+", default=[1, 10, 100])
    parser.add_argument("--scratch", type=Path, help="where the shards are written and kept; none: a temporary folder")
    parser.add_argument("--train-as", type=Path, help="train as this file says, print what was sent; and end")
    parser.add_argument("--start-of", type=Path, help="open this folder, print seconds and bytes; and end")
    options = parser.parse_args()
    if options.start_of:
        print(json.dumps(started(options.start_of)))
        return
    if options.train_as:
        print(json.dumps(trained(json.loads(options.train_as.read_text()))))
        sys.stdout.flush()
        os._exit(0)  # gloo's threads have been seen to abort the interpreter's own way out
    parts: dict[str, Callable[[Path], dict[str, Any]]] = {
        "collection": lambda folder: collection(folder, options.requests),
        "dataset": lambda folder: dataset(options.scratch or folder, options.millions),
        "training": training,
    }
    result: dict[str, Any] = {}
    for name in options.parts or parts:
        print(f"{name} ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            result |= parts[name](Path(folder))
    machine = {"machine": f"{platform.system()} {platform.machine()}", "cores": os.cpu_count()}
    print(json.dumps(result | {"goals": GOALS, **machine, "python": platform.python_version()}))


# --- collection ------------------------------------------------------------------------------------------------------


@attrs.frozen
class Collector:
    """A worker: collects parts of the whole."""

    url: str
    prompts: Path
    raw: Path

    async def do(self, part: str) -> dict[str, Any]:
        """`part`: "i/n"."""
        from benchmarks.collect import server_teacher
        from bitnet_providers.collect.collect import collect
        from bitnet_providers.config import CollectConfig

        config = CollectConfig(prompts=self.prompts, top_k=5, max_new_tokens=8, concurrency=CONCURRENCY, shard=part)
        teacher = server_teacher(self.url)
        try:
            return await collect(teacher, config, self.raw / part.replace("/", "of"), "openai-compatible", 0)
        finally:
            await teacher.aclose()

    async def aclose(self) -> None:
        pass


@attrs.frozen
class OpenCollector:
    """What opens a worker; it asks once before, so that nothing is imported while the clock runs."""

    url: str
    folder: Path

    async def __call__(self, number: int, ask: Any) -> Collector:
        warm = self.folder / f"warm-{number}"
        warm.mkdir()
        (warm / "prompts.txt").write_text("hello")
        await Collector(self.url, warm / "prompts.txt", warm).do("1/1")
        return Collector(self.url, self.folder / "prompts.txt", self.folder / "raw")


def collection(folder: Path, requests: int, workers: Sequence[int] = WORKERS) -> dict[str, Any]:
    sys.path.insert(0, str(ROOT / "packages/bitnet-providers/tests"))  # the loopback server
    from loopback.counting_server import counts_of, running

    rows = []
    for count in workers:
        with running(tokens=8, candidates=5, latency_s=LATENCY_S) as url:
            own = folder / f"workers-{count}"
            own.mkdir()
            (own / "prompts.txt").write_text("\n".join(f"question {number}" for number in range(requests)))
            row = asyncio.run(collected(url, own, count))
            row["most_at_once"] = counts_of(url)["most_at_once"]
        assert row["completions"] == requests, row
        row["requests_per_second"] = requests / row["seconds"]
        print(row, file=sys.stderr, flush=True)
        rows.append(row)
    first, last = rows[0], rows[-1]
    return {
        "collection_efficiency": last["requests_per_second"] / first["requests_per_second"] / last["workers"],
        "collection": {"latency_s": LATENCY_S, "concurrency": CONCURRENCY, "requests": requests, "rows": rows},
    }


async def collected(url: str, folder: Path, workers: int) -> dict[str, Any]:
    from benchmarks.scale import OpenCollector  # by a name that workers know, too
    from bitnet_cli.contract import ClusterConfig, Crew, Done
    from bitnet_cli.launching.local import LocalLauncher
    from bitnet_providers.raw.merge_raw import merge_raw

    launcher = LocalLauncher(ClusterConfig(workers=workers))
    parts = [f"{number}/{workers}" for number in range(1, workers + 1)]
    began = time.perf_counter()
    async with launcher.launch(Crew(open_worker=OpenCollector(url, folder), logs=folder / "logs")) as team:
        open_s, busy_s = time.perf_counter() - began, sum(os.times()[:4])
        began = time.perf_counter()
        async for event in team.run(lambda: parts.pop() if parts else None):
            assert isinstance(event, Done), event
        asking_s = time.perf_counter() - began
        merged = merge_raw(sorted((folder / "raw").iterdir()), folder / "merged")
        seconds = time.perf_counter() - began
    return {
        "workers": workers,
        "seconds": seconds,
        "merge_seconds": seconds - asking_s,
        "start_seconds": open_s,
        "completions": merged["completions"],
        "cpu_seconds": sum(os.times()[:4]) - busy_s,  # this process, and the workers that have ended
    }


# --- dataset ---------------------------------------------------------------------------------------------------------


def dataset(folder: Path, millions: Sequence[float]) -> dict[str, Any]:
    rows = []
    for size in millions:
        shards = write_positions(folder / f"{size:g}-million", round(size * 1e6))
        command = [sys.executable, "-m", "benchmarks.scale", "--start-of", str(shards)]
        for _ in range(2):
            done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        row = {"positions": round(size * 1e6), **json.loads(done.stdout.splitlines()[-1])}
        print(row, file=sys.stderr, flush=True)
        rows.append(row)
    largest = rows[-1]
    growth = [
        (b["start_seconds"] + b["shuffle_seconds"]) / (a["start_seconds"] + a["shuffle_seconds"])
        for a, b in itertools.pairwise(rows)
    ]
    return {
        "start_seconds": largest["start_seconds"] + largest["shuffle_seconds"],
        "resident_megabytes": largest["peak_bytes"] / 1e6,
        "start_growth": max(growth, default=None),
        "dataset": {"document": DOCUMENT, "k": K, "rows": rows},
    }


def write_positions(folder: Path, positions: int) -> Path:
    """KD shards of one projection with so many positions; what is there already is not written again."""
    import pyarrow as pa

    from bitnet_core.traces.write_shards import kd_table, write_kd_shard

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    ids = rng.permuted(np.tile(np.arange(1000, dtype=np.int32), (REPEAT, 1)), axis=1)[:, :K]
    logprobs = -np.sort(rng.uniform(3, 8, (REPEAT, K)), axis=1).astype(np.float16)
    others = np.log1p(-np.exp(logprobs.astype(np.float64)).sum(axis=1)).astype(np.float32)
    for number, first in enumerate(range(0, positions, PER_FILE)):
        file = folder / f"kd_shard_{number:03d}.parquet"
        if file.exists():
            continue
        rows = min(PER_FILE, positions - first)
        place = np.arange(rows) % REPEAT
        document = np.arange(rows) // DOCUMENT
        step = (np.arange(rows) % DOCUMENT).astype(np.int32)
        tokens = rng.integers(0, 1000, rows, dtype=np.int32)
        columns = {
            "prompt_idx": first // DOCUMENT + document,
            "sample_idx": np.zeros(rows, np.int32),
            "step_idx": step,
            "teacher_sample_id": tokens,
            "teacher_sample_text": pa.repeat(b"w", rows),
            "other_logprob": others[place],
            "is_struct_token": np.zeros(rows, bool),
            "is_prompt": step < 20,
            "has_kd": step >= 20,
            "sample_logprob": rng.uniform(-5, 0, rows).astype(np.float32),
            "split": pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), ["train"]),
        }
        write_kd_shard(file, kd_table(columns, ids[place], logprobs[place]), metadata())
    return folder


def metadata() -> Any:
    from bitnet_core.traces.schema import KDMetadata

    projection = {"path": "identity", "id": "scale", "seed": 0, "holdout_fraction": 0.0}
    return KDMetadata(tokenizer_sha256="0" * 64, k=K, vocab_size=1000, projection=projection, raw={})


def started(folder: Path) -> dict[str, float]:
    """What a process takes until it could train."""
    from bitnet_core.traces.batch_order import epoch_batches
    from bitnet_core.traces.dataset import KDTraceDataset

    imported = status_bytes("VmRSS")
    began = time.perf_counter()
    traces = KDTraceDataset(folder, split="train")
    start_s = time.perf_counter() - began
    windows = traces.windows
    batches = epoch_batches(traces.lengths, 8, 0, 0, windows)
    shuffle_s = time.perf_counter() - began - start_s
    assert sum(map(len, batches)) == len(traces)
    return {
        "documents": len(traces),
        "start_seconds": start_s,
        "shuffle_seconds": shuffle_s,
        "resident_bytes": status_bytes("VmRSS") - imported,
        "peak_bytes": status_bytes("VmHWM") - imported,
        "bytes_of_imports": imported,
        "shard_bytes": sum(file.stat().st_size for file in folder.iterdir()),
    }


def status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


# --- training --------------------------------------------------------------------------------------------------------

STUDENT = {
    "init_from": "", "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
TRAIN = {
    "batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 1, "checkpoint_every": 1000, "validate_every": 1000,
    "log_every": 1000, "precision": "fp32",
}  # fmt: skip


def training(folder: Path, processes: Sequence[int] = (1, 2, 4), student: dict[str, Any] = STUDENT) -> dict[str, Any]:
    traces = made_up_traces(folder)
    rows = []
    for count in processes:
        short, long = (steps_by(count, steps, folder / f"{count}-{steps}", traces, student) for steps in (2, 6))
        sent = {name: (long["sent"].get(name, 0) - short["sent"].get(name, 0)) / 4 for name in sorted(long["sent"])}
        layers, rest, share = long["layer_parameters"], long["other_parameters"], (count - 1) / count
        needed = 4 * share * (3 * layers + 2 * rest)
        total = sum(sent.values())
        sent = {name: size for name, size in sent.items() if size}
        row = {"processes": count, "parameters": layers + rest, "sent_bytes": total, "needed_bytes": needed}
        rows.append(row | {"ratio": total / needed if needed else None, "by_collective": sent})
        print(rows[-1], file=sys.stderr, flush=True)
    return {"sent_over_needed": rows[-1]["ratio"], "training": {"student": student, "rows": rows}}


def made_up_traces(folder: Path) -> dict[str, str]:
    sys.path.insert(0, str(ROOT / "packages/bitnet-core/tests/shared"))
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    import training_fixtures
    from bitnet_core.traces.tokenizer import tokenizer_identity

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(training_fixtures.VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1", pad_token="w1", unk_token="w0")
    tokenizer.chat_template = training_fixtures.TEMPLATE
    tokenizer.save_pretrained(folder / "tokenizer")
    training_fixtures.write_shard(folder / "data", tokenizer_identity(folder / "tokenizer"))
    return {"data": str(folder / "data"), "tokenizer": str(folder / "tokenizer")}


def steps_by(count: int, steps: int, folder: Path, traces: dict[str, str], student: dict[str, Any]) -> dict[str, Any]:
    """What the first of so many processes says."""
    folder.mkdir()
    spec = folder / "spec.json"
    spec.write_text(
        json.dumps({**traces, "folder": str(folder), "student": student, "train": TRAIN | {"steps": steps}})
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    group = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.scale", "--train-as", str(spec)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if rank else None,
            env=os.environ
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            text=True,
        )
        for rank in range(count)
    ]
    said = [process.communicate()[0] for process in group]
    assert all(process.returncode == 0 for process in group), [process.returncode for process in group]
    found: dict[str, Any] = json.loads(said[0].splitlines()[-1])
    return found


def trained(spec: dict[str, Any]) -> dict[str, Any]:
    """Train, and count what this process hands to others. In a ring: (N - 1)/N of what is gathered or scattered."""
    sys.path.insert(0, str(ROOT / "packages/bitnet-core/tests/shared"))
    from torch.utils._python_dispatch import TorchDispatchMode

    from bitnet_core.training import setup
    from training_process import train_as

    world = int(os.environ["WORLD_SIZE"])
    sent: dict[str, float] = {}
    counts: dict[str, int] = {}
    shard = setup.shard

    def counted_shard(model: Any, layers: Any, group: Any) -> Any:
        own = {id(parameter): parameter.numel() for layer in layers for parameter in layer.parameters()}
        every = {id(parameter): parameter.numel() for parameter in model.parameters()}
        counts["layer_parameters"] = sum(own.values())
        counts["other_parameters"] = sum(every.values()) - sum(own.values())
        return shard(model, layers, group)

    setup.shard = counted_shard

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.namespace in ("c10d", "_c10d_functional"):
                name = func.__name__.partition(".")[0]
                share = {"allreduce_": 2, "broadcast_": 1}.get(name, 1) * (world - 1) / world
                sent[name] = sent.get(name, 0) + share * largest(args)
            return func(*args, **(kwargs or {}))

    with Counting():
        train_as(spec)
    return {"sent": sent, **counts}


def largest(value: Any) -> int:
    """Bytes of the largest tensor of a collective's arguments: the whole that is gathered, scattered or summed."""
    if hasattr(value, "nbytes"):
        return int(value.nbytes)
    if isinstance(value, list | tuple):
        return max(map(largest, value), default=0)
    return 0


if __name__ == "__main__":
    main()
