"""How do collection and traces grow? (Training: `benchmarks.many_processes`.)

    python -m benchmarks.scale [collection] [leases] [dataset] [--add]
        [--requests 4800] [--millions 1 10 100] [--scratch FOLDER]

collection: so many requests, by 1, 2, 4 and 8 workers (the launcher `local`: processes of this machine), each with its
part of them (`--shard i/n`), its journal and its ledger, against a loopback server that answers after 50 ms. A worker
has 2 requests under way at any time: then 8 workers wait most of the time, and what is measured is not how many
processors this machine has. `seconds` is from the first request to the last shard of the merged folder (as
`bitnet traces merge` makes it); starting the workers (Python, imports) is told apart, as a cluster's start would be.
`collection_efficiency` is the throughput of 8 workers over 8 times that of one.
leases: a tenth as many requests, by 1, 2 and 4 workers that share one budget and ledger and are dealt leases, as
`bitnet run --cluster local` and `--cluster ray` do it; Ray is started here. `first_ready_seconds`: from the start of
the processes, with Ray from ray.init, until the first worker is open (Python, imports, one request);
`all_ready_seconds`: until all are. The rate is over asking and writing the shards; closing the workers, and Ray, is
told apart. `leases_efficiency` is the throughput of 4 workers over 4 times that of one.
dataset: 1, 10 and 100 million positions of KD shards, written by the project stage's own writer: documents of 200
positions, K = 8, whose candidates repeat after 5,000 positions, so that all fit on a disk (no start reads them). In a
fresh process: seconds until `KDTraceDataset` is there with all its checks, until the first epoch is shuffled, and
resident bytes beyond those of the imports (at the end, and the peak). Each is measured twice, and the second counts:
the files are in the machine's memory then. Linux only.
With --add what these parts found goes into the stored result, beside what is there, and says itself what made it.
The last line is one JSON object.
"""

import argparse
import asyncio
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from bitnet_cli.contract import Crew, Launcher, OpenWorker, Team

ROOT = Path(__file__).parents[1]

GOALS = {
    "collection_efficiency": "at least 0.9",
    "start_seconds": "at most 10 for 100 million positions, shuffling counted",
    "resident_megabytes": "at most 200 for 100 million positions, beyond the imports",
    "start_growth": "at most 10 from one size to ten times it",
}
WORKERS = (1, 2, 4, 8)
LATENCY_S = 0.05
CONCURRENCY = 2
"""Requests that a worker has under way."""
KINDS = ("local", "ray")

DOCUMENT, K, PER_FILE, REPEAT = 200, 8, 1_000_000, 5_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="collection, leases, dataset (none: all)")
    parser.add_argument("--add", action="store_true", help="put what these parts found into the stored result")
    parser.add_argument("--requests", type=int, default=4800)
    parser.add_argument("--millions", type=float, nargs="+", default=[1, 10, 100])
    parser.add_argument("--scratch", type=Path, help="where the shards are written and kept; none: a temporary folder")
    parser.add_argument("--start-of", type=Path, help="open this folder, print seconds and bytes; and end")
    options = parser.parse_args()
    if options.start_of:
        print(json.dumps(started(options.start_of)))
        return
    parts: dict[str, Callable[[Path], dict[str, Any]]] = {
        "collection": lambda folder: collection(folder, options.requests),
        "leases": lambda folder: leases(folder, options.requests // 10),
        "dataset": lambda folder: dataset(options.scratch or folder, options.millions),
    }
    result: dict[str, Any] = {}
    for name in options.parts or parts:
        print(f"{name} ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            result |= parts[name](Path(folder))
    if options.add:
        add(result, options.parts or list(parts))
    machine = {"machine": f"{platform.system()} {platform.machine()}", "cores": os.cpu_count()}
    print(json.dumps(result | {"goals": GOALS, **machine, "python": platform.python_version()}))


def add(result: dict[str, Any], parts: Sequence[str]) -> None:
    from benchmarks.stale import RESULTS, stamped, write

    file = RESULTS / "scale.json"
    new = {name: stamped("scale", found) if name in parts else found for name, found in result.items()}
    write(file, json.loads(file.read_text()) | new)


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
    from bitnet_cli.contract import ClusterConfig, Done
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


# --- leases ----------------------------------------------------------------------------------------------------------


@attrs.frozen
class OpenTimed:
    """Opens a worker of a collection, and says when that was done."""

    open_worker: OpenWorker
    warm: OpenCollector
    folder: Path

    async def __call__(self, number: int, ask: Any) -> Any:
        await self.warm(number, ask)
        worker = await self.open_worker(number, ask)
        (self.folder / f"ready-{number}").write_text(repr(time.time()))
        return worker


@attrs.define
class TimedLauncher:
    """A `Launcher` that notes how long what it does takes."""

    launcher: Launcher
    warm: OpenCollector
    folder: Path
    seconds: dict[str, float] = attrs.Factory(dict)

    @property
    def workers(self) -> int:
        return self.launcher.workers

    @asynccontextmanager
    async def launch(self, crew: Crew) -> AsyncIterator[Team]:
        from benchmarks.scale import OpenTimed  # by a name that workers know, too

        began = time.time()
        timed = attrs.evolve(crew, open_worker=OpenTimed(crew.open_worker, self.warm, self.folder))
        async with self.launcher.launch(timed) as team:
            opened = time.time()
            ready = [float(file.read_text()) for file in self.folder.glob("ready-*")]
            self.seconds |= {"first_ready_seconds": min(ready) - began, "all_ready_seconds": opened - began}
            yield team
            asked = time.time()
        self.seconds |= {"asking_seconds": asked - opened, "close_seconds": time.time() - asked}


def leases(folder: Path, requests: int, workers: Sequence[int] = (1, 2, 4), kinds: Sequence[str] = KINDS) -> Any:
    sys.path.insert(0, str(ROOT / "packages/bitnet-providers/tests"))  # the loopback server
    from loopback.counting_server import counts_of, running

    rows = []
    for kind, count in itertools.product(kinds, workers):
        with running(tokens=8, candidates=5, latency_s=LATENCY_S) as url:
            own = folder / f"{kind}-{count}"
            own.mkdir()
            (own / "prompts.txt").write_text("\n".join(f"question {number}" for number in range(requests)))
            row = {"kind": kind, "workers": count, **asyncio.run(leased(url, own, kind, count))}
            row["most_at_once"] = counts_of(url)["most_at_once"]
        assert row["completions"] == requests, row
        row["requests_per_second"] = requests / (row["asking_seconds"] + row["shards_seconds"])
        print(row, file=sys.stderr, flush=True)
        rows.append(row)
    rate = {(row["kind"], row["workers"]): row["requests_per_second"] for row in rows}
    few, many = min(workers), max(workers)
    return {
        "leases_efficiency": {kind: rate[kind, many] / rate[kind, few] * few / many for kind in kinds},
        "leases": {"latency_s": LATENCY_S, "concurrency": CONCURRENCY, "requests": requests, "rows": rows},
    }


async def leased(url: str, folder: Path, kind: str, workers: int) -> dict[str, Any]:
    from benchmarks.collect import server_teacher
    from benchmarks.scale import OpenCollector  # by a name that workers know, too
    from bitnet_cli.plugin import bitnet_launchers
    from bitnet_cli.stages.collect_on_workers import OnWorkers, facts_of
    from bitnet_providers.collect.collect import collect, prepare
    from bitnet_providers.config import CollectConfig

    if kind == "ray":
        import ray  # noqa: F401 -- its import is not its start
    plugin = next(each for each in bitnet_launchers() if each.name == kind)
    options = plugin.options(workers=workers)
    launcher = TimedLauncher(plugin.open(options), OpenCollector(url, folder), folder)
    config = CollectConfig(prompts=folder / "prompts.txt", top_k=5, max_new_tokens=8, concurrency=CONCURRENCY)
    teacher, raw = server_teacher(url), folder / "raw"
    on_workers = OnWorkers(
        launcher=launcher,
        options=options,
        open_teacher=partial(server_teacher, url),
        teacher=facts_of(teacher),
        config=config,
        raw_folder=raw,
        logs=folder / "logs",
        notify=print,
    )
    before = prepare(teacher, config, raw, "openai-compatible", 0)
    began = time.time()
    summary = await collect(teacher, config, raw, "openai-compatible", 0, before=before, asking=on_workers.ask)
    shards_s = (
        time.time()
        - began
        - sum(launcher.seconds[name] for name in ("all_ready_seconds", "asking_seconds", "close_seconds"))
    )
    await teacher.aclose()
    return {"completions": summary["completions"], **launcher.seconds, "shards_seconds": shards_s}


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


if __name__ == "__main__":
    main()
