"""The quickstart as a newcomer has it: from an empty cache and an empty run folder to the report, then once more.

    uv run python -m benchmarks.quickstart [cpu-hour] [--figures docs/images] [--folder WORK]

Or another of the shipped manifests that need no key. Prints one JSON object last: wall seconds by stage, of the whole
and of the second run (which skips everything), CPU seconds, the whole also as a multiple of a fixed matrix product on
the same machine, the figures of the evaluation, the machine. `--figures` copies the report's plots; `--folder` keeps
the run and the cache there, and goes on with what was interrupted.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

BITNET = str(Path(sys.executable).with_name("bitnet"))
FIGURES = (
    "heldout_kl", "untrained_kl", "unigram_kl", "bigram_kl", "top1_agreement", "perplexity", "teacher_perplexity",
    "tokens_per_second", "teacher_tokens_per_second", "memory_bytes", "teacher_memory_bytes", "qei", "qei_speed",
    "activation_bits", "seen_tokens", "intervals_95", "heldout", "heldout_at_8_bits", "baselines", "runtime",
)  # fmt: skip


def run(name: str, folder: Path) -> float:
    start = time.perf_counter()
    subprocess.run(
        [BITNET, "run", f"manifests/{name}.toml", "--set", f'store.root="{folder}/runs"'],
        check=True,
        stdout=sys.stderr,
        env=os.environ | {"BITNET_CACHE": str(folder / "cache")},
    )
    return time.perf_counter() - start


def product_seconds() -> float:
    """Seconds of 100 bfloat16 products of 2,048 x 2,048 matrices on all cores: what a run is compared with."""
    left, right = (torch.randn(2048, 2048).bfloat16() for _ in range(2))
    left @ right
    start = time.perf_counter()
    for _ in range(100):
        left @ right
    return time.perf_counter() - start


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="quickstart", help="of a manifest in manifests/")
    parser.add_argument("--folder", type=Path, help="a folder to work in, which stays")
    parser.add_argument("--figures", type=Path, help="a folder for the report's plots")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).resolve()
        results = folder / "runs" / arguments.name
        before = sorted(file.parent.name for file in results.glob("stages/*/done.json"))
        products = product_seconds()
        first = run(arguments.name, folder)
        cpu = resource.getrusage(resource.RUSAGE_CHILDREN)
        second = run(arguments.name, folder)
        report = read(results / "reports/mini_evaluation_report.json")
        stages = {file.parent.name: read(file)["seconds"] for file in results.glob("stages/*/done.json")}
        metrics = [json.loads(line) for line in (results / "logs/metrics.jsonl").read_text().splitlines()]
        if arguments.figures:
            arguments.figures.mkdir(parents=True, exist_ok=True)
            for plot in (results / "reports/figures").glob("*.svg"):
                shutil.copy(plot, arguments.figures / f"{arguments.name}-{plot.name}")
    print(
        json.dumps(
            {
                "manifest": arguments.name,
                "seconds_cold": None if before else first,
                "seconds_run": first,
                "cpu_seconds_run": cpu.ru_utime + cpu.ru_stime,
                "stages_done_before": before,
                "products_seconds": products,
                "run_over_products": first / products,
                "seconds_again": second,
                "seconds_by_stage": stages,
                "kl_of_unigram": report["heldout_kl"] / report["unigram_kl"],
                "kl_of_bigram": report["heldout_kl"] / report["bigram_kl"],
                **{name: report[name] for name in FIGURES},
                "validation_kl_by_step": {
                    row["step"]: row["validation_kl"] for row in metrics if "validation_kl" in row
                },
                "load_average": os.getloadavg()[0],
                "cores": os.cpu_count(),
                "machine": f"{platform.system()} {platform.machine()}",
                "versions": {name: version(name) for name in ("torch", "transformers", "pyarrow", "bitnet-cli")},
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
