"""How fast do KD traces load, how large are they, and does memory stay put when they grow?

    python -m benchmarks.traces_load RUN [--rounds 5 --copies 4 --small 10 --large 1000 --out FILE.json]

RUN is a finished run folder with a real teacher's traces (manifests/quickstart.toml makes one).

load: the traces, written `copies` times with prompts of their own, go into padded training batches (one epoch, opening
and all checks included) in three ways: `KDTraceDataset`; `plain_batches` below, what a first program does (to_pydict,
Python lists, torch.tensor); and pyarrow alone reading the same columns of the same files, without making anything of
them. The dataset and pyarrow alternate, then comes the plain way; ratios are of CPU seconds (user and system, all
threads: other programs on the machine disturb wall seconds more; their ratio is recorded too), and the median has its
range beside it.
size: the file's bytes for each KD position, all columns and prompt rows included, by the writer of the project stage.
error: KL(teacher ‖ stored), nats, over the K + other buckets, mean over positions; the teacher's from the raw shards in
float64, the stored renormalised as the loss does it.
memory: peak resident bytes of a fresh process that opens the traces and makes every batch of an epoch, at `large`
megabytes of shards and at `small`. Linux only.
The last line is one JSON object.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from bitnet_core.projection.top_k_other import top_k_with_other
from bitnet_core.traces.batch_order import epoch_batches
from bitnet_core.traces.dataset import KDTraceDataset
from bitnet_core.traces.read_shards import COLUMNS
from bitnet_core.traces.schema import SCHEMA, KDMetadata, read_metadata
from bitnet_core.traces.write_shards import write_kd_shard

BATCH_SIZE = 8
GOALS = {
    "load_speedup": "at least 20",
    "load_vs_arrow": "at most 2",
    "bytes_per_position": "at most 64",
    "stored_kl_error": "under 1e-6",
    "peak_memory_ratio": "at most 1.2",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--copies", type=int, default=4)
    parser.add_argument("--small", type=int, default=10, help="megabytes")
    parser.add_argument("--large", type=int, default=1000, help="megabytes")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peak-of", type=Path, help="load this folder, print peak bytes, seconds, positions; and end")
    options = parser.parse_args()
    if options.peak_of:
        print(json.dumps(load_once(options.peak_of)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        result = measure(options, Path(scratch))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


def measure(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    table, metadata = real_traces(options.run)
    shard = scratch / "one" / "kd_shard_000.parquet"
    started = time.perf_counter()
    write_kd_shard(shard, table, metadata)
    write_seconds = time.perf_counter() - started
    kd_positions = int(table["has_kd"].to_numpy().sum())
    print(f"{len(table):,} positions, {kd_positions:,} with KD, {shard.stat().st_size:,} bytes")
    errors = kl_errors(options.run, table)
    print(f"KL of the stored form: mean {errors.mean():.2e}, largest {errors.max():.2e} nats")

    several = copies(table, metadata, scratch / "several", options.copies)
    ways: dict[str, Callable[[], int]] = {
        "dataset": lambda: load_epoch(several),
        "arrow": lambda: read_columns(several),
        "plain": lambda: plain_epoch(several),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    wall: dict[str, list[float]] = {name: [] for name in ways}
    # The two that are near each other alternate; the plain way follows by itself. Between them it would leave memory
    # that the system has taken back in its ten seconds, and the next one would pay for getting it again.
    order = [("dataset", "arrow")] * options.rounds + [("plain",)] * options.rounds
    for number, names in enumerate(order):
        for name in names:
            start, wall_start = time.process_time(), time.perf_counter()
            positions = ways[name]()
            seconds[name].append(time.process_time() - start)
            wall[name].append(time.perf_counter() - wall_start)
            assert positions == options.copies * len(table), name
        print(f"{number + 1}/{len(order)}: " + ", ".join(f"{name} {seconds[name][-1]:.3f} s" for name in names))
    speedups = ratios(seconds["plain"], seconds["dataset"])
    vs_arrow = ratios(seconds["dataset"], seconds["arrow"])
    vs_arrow_wall = ratios(wall["dataset"], wall["arrow"])

    peaks: dict[str, Any] = {}
    for name in ("small", "large"):
        megabytes = getattr(options, name)
        peaks[name] = peak_at(shard, scratch / name, megabytes, options.run)
        print(f"{megabytes} MB of shards: {peaks[name]}")
        shutil.rmtree(scratch / name)
    small, large = (peaks[name] and peaks[name]["peak_bytes"] for name in ("small", "large"))
    return {
        "load_speedup": round(statistics.median(speedups), 2),
        "load_vs_arrow": round(statistics.median(vs_arrow), 3),
        "bytes_per_position": round(shard.stat().st_size / kd_positions, 2),
        "stored_kl_error": float(f"{errors.mean():.3e}"),
        "peak_memory_ratio": round(large / small, 3) if small and large else None,
        "goals": GOALS,
        "load_speedup_range": [round(min(speedups), 2), round(max(speedups), 2)],
        "load_vs_arrow_range": [round(min(vs_arrow), 3), round(max(vs_arrow), 3)],
        "load_vs_arrow_wall": round(statistics.median(vs_arrow_wall), 3),
        "load_vs_arrow_wall_range": [round(min(vs_arrow_wall), 3), round(max(vs_arrow_wall), 3)],
        "cpu_seconds": {name: [round(value, 4) for value in values] for name, values in seconds.items()},
        "wall_seconds": {name: [round(value, 4) for value in values] for name, values in wall.items()},
        "positions_per_second": round(options.copies * len(table) / min(wall["dataset"])),
        "largest_kl_error": float(f"{errors.max():.3e}"),
        "bytes_by_column": bytes_by_column(shard, kd_positions),
        "write_positions_per_second": round(len(table) / write_seconds),
        "memory": {"megabytes": [options.small, options.large], **peaks},
        "data": {"positions": len(table), "kd_positions": kd_positions, "k": metadata.k, "copies": options.copies},
        "rounds": options.rounds,
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "arrow_threads": pa.cpu_count(),
            "load_average": os.getloadavg()[0],
        },
        "versions": {
            "python": platform.python_version(), "pyarrow": pa.__version__,
            "numpy": np.__version__, "torch": torch.__version__,
        },
    }  # fmt: skip


def ratios(numerators: list[float], denominators: list[float]) -> list[float]:
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def real_traces(run: Path) -> tuple[pa.Table, KDMetadata]:
    files = sorted((run / "data").glob("kd_shard_*.parquet"))
    if not files:
        sys.exit(f"{run}: no traces in its data/; make a run with: bitnet run manifests/quickstart.toml")
    metadata = read_metadata(pq.read_schema(str(files[0])), files[0])
    assert metadata is not None
    return pa.concat_tables([pq.read_table(str(file)) for file in files]).cast(SCHEMA), metadata


def copies(table: pa.Table, metadata: KDMetadata, folder: Path, count: int) -> Path:
    """The traces `count` times over, with prompt numbers that go on."""
    prompts = 1 + int(table["prompt_idx"].to_numpy().max())
    for number in range(count):
        moved = pa.array(table["prompt_idx"].to_numpy() + number * prompts)
        write_kd_shard(folder / f"kd_shard_{number:03d}.parquet", table.set_column(0, "prompt_idx", moved), metadata)
    return folder


# --- three ways of loading -------------------------------------------------------------------------------------------


def load_epoch(folder: Path) -> int:
    dataset = KDTraceDataset(folder)
    positions = 0
    for documents in epoch_batches(dataset.lengths, BATCH_SIZE, 0, 0, dataset.windows):
        positions += int(dataset.batch(documents)["attention_mask"].sum())
    return positions


def read_columns(folder: Path) -> int:
    return sum(len(pq.read_table(str(file), columns=COLUMNS)) for file in sorted(folder.glob("*.parquet")))


def plain_epoch(folder: Path) -> int:
    documents: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for file in sorted(folder.glob("*.parquet")):
        columns = pq.read_table(str(file), columns=COLUMNS).to_pydict()
        for values in zip(*columns.values(), strict=True):
            row = dict(zip(columns, values, strict=True))
            documents.setdefault((row["prompt_idx"], row["sample_idx"]), []).append(row)
    ordered = list(documents.values())
    batches = epoch_batches([len(rows) for rows in ordered], BATCH_SIZE, 0, 0)
    return sum(int(batch["attention_mask"].sum()) for batch in plain_batches([ordered[i] for i in b] for b in batches))


def plain_batches(batches: Iterator[list[list[dict[str, Any]]]]) -> Iterator[dict[str, torch.Tensor]]:
    """Rows as dictionaries, padded as lists, then torch.tensor."""
    for documents in batches:
        longest, k = max(map(len, documents)), len(documents[0][0]["topk_ids"])
        padding = {
            "teacher_sample_id": 0, "topk_ids": [0] * k, "topk_logprobs": [float("-inf")] * k, "other_logprob": 0.0,
            "is_struct_token": False, "has_kd": False, "is_prompt": True, "sample_logprob": float("nan"),
        }  # fmt: skip
        batch = {
            name: torch.tensor([[row[name] for row in rows] + [pad] * (longest - len(rows)) for rows in documents])
            for name, pad in padding.items()
        }
        mask = torch.tensor([[True] * len(rows) + [False] * (longest - len(rows)) for rows in documents])
        yield {"input_ids": batch["teacher_sample_id"].clone(), "attention_mask": mask, **batch}


# --- size, error, memory ---------------------------------------------------------------------------------------------


def bytes_by_column(file: Path, kd_positions: int) -> dict[str, float]:
    metadata = pq.read_metadata(str(file))
    sums: dict[str, int] = {}
    for group in range(metadata.num_row_groups):
        for column in (metadata.row_group(group).column(i) for i in range(metadata.num_columns)):
            name = column.path_in_schema.split(".")[0]
            sums[name] = sums.get(name, 0) + column.total_compressed_size
    return {name: round(size / kd_positions, 2) for name, size in sums.items()}


def kl_errors(run: Path, table: pa.Table) -> np.ndarray:
    """KL(teacher ‖ stored) of each KD position, nats."""
    raw = pa.concat_tables(
        [
            pq.read_table(
                str(file),
                columns=["prompt_idx", "sample_idx", "candidate_counts", "candidate_ids", "candidate_logprobs"],
            )
            for file in sorted((run / "raw").glob("shard_*.parquet"))
        ]
    ).sort_by([("prompt_idx", "ascending"), ("sample_idx", "ascending")])
    counts, ids, logprobs = (
        raw[name].combine_chunks() for name in ("candidate_counts", "candidate_ids", "candidate_logprobs")
    )
    k = len(table["topk_ids"][0])
    exact = top_k_with_other(
        counts.flatten().to_numpy().astype(np.int64), ids.flatten().to_numpy(), logprobs.flatten().to_numpy(), k
    )
    # A completion's T tokens are the last T rows of its document.
    tokens_D = np.diff(counts.offsets.to_numpy())
    key = table["prompt_idx"].to_numpy() * 2**31 + table["sample_idx"].to_numpy()
    ends_D = np.append(np.flatnonzero(np.diff(key)) + 1, len(key))
    kept = tokens_D > 0
    rows_T = np.concatenate([np.arange(e - t, e) for e, t in zip(ends_D, tokens_D[kept], strict=True)])
    kd_T = table["has_kd"].to_numpy()[rows_T]
    stored_RK = table["topk_logprobs"].combine_chunks().flatten().to_numpy().reshape(-1, k)[rows_T[kd_T]]
    stored = np.column_stack([stored_RK, table["other_logprob"].to_numpy()[rows_T[kd_T]]]).astype(np.float64)
    stored -= np.logaddexp.reduce(stored, axis=1, keepdims=True)
    true = np.column_stack([exact.logprobs, exact.other])[kd_T]
    with np.errstate(invalid="ignore"):
        return np.nansum(np.exp(true) * (true - stored), axis=1)


def load_once(folder: Path) -> dict[str, float]:
    imported = status_bytes("VmRSS")
    start = time.perf_counter()
    positions = load_epoch(folder)
    seconds = time.perf_counter() - start
    return {
        "peak_bytes": status_bytes("VmHWM"),
        "bytes_before_loading": imported,
        "seconds": round(seconds, 2),
        "positions": positions,
    }


def status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


def peak_at(shard: Path, folder: Path, megabytes: int, run: Path) -> dict[str, float] | None:
    """The peak of a fresh process over copies of `shard`, together at least `megabytes` large."""
    if not Path("/proc/self/status").exists():
        return None
    folder.mkdir()
    for number in range(-(-megabytes * 10**6 // shard.stat().st_size)):
        shutil.copyfile(shard, folder / f"kd_shard_{number:03d}.parquet")
    command = [sys.executable, "-m", "benchmarks.traces_load", str(run), "--peak-of", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


if __name__ == "__main__":
    main()
