"""The quickstart as a newcomer has it: from an empty cache and an empty run folder to the report, then once more.

    uv run python -m benchmarks.quickstart [--figures docs/images]

Prints one JSON object last: wall seconds by stage, of the whole and of the second run (which skips everything), the
figures of the evaluation, and the machine. `--figures` copies the report's plots.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

BITNET = str(Path(sys.executable).with_name("bitnet"))
MANIFEST = "manifests/quickstart.toml"
FIGURES = (
    "heldout_kl", "untrained_kl", "unigram_kl", "bigram_kl", "top1_agreement", "perplexity", "teacher_perplexity",
    "tokens_per_second", "teacher_tokens_per_second", "memory_bytes", "teacher_memory_bytes", "qei", "qei_speed",
    "activation_bits", "seen_tokens", "intervals_95", "heldout", "heldout_at_8_bits", "baselines", "runtime",
)  # fmt: skip


def run(folder: Path) -> float:
    start = time.perf_counter()
    subprocess.run(
        [BITNET, "run", MANIFEST, "--set", f'store.root="{folder}/runs"'],
        check=True,
        stdout=sys.stderr,
        env=os.environ | {"BITNET_CACHE": str(folder / "cache")},
    )
    return time.perf_counter() - start


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figures", type=Path, help="a folder for the report's plots")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first, second = run(folder), run(folder)
        results = folder / "runs/quickstart"
        report = read(results / "reports/mini_evaluation_report.json")
        stages = {file.parent.name: read(file)["seconds"] for file in results.glob("stages/*/done.json")}
        if arguments.figures:
            arguments.figures.mkdir(parents=True, exist_ok=True)
            for plot in (results / "reports/figures").glob("*.png"):
                shutil.copy(plot, arguments.figures / f"quickstart-{plot.name}")
    print(
        json.dumps(
            {
                "seconds_cold": first,
                "seconds_again": second,
                "seconds_by_stage": stages,
                "kl_of_unigram": report["heldout_kl"] / report["unigram_kl"],
                "kl_of_bigram": report["heldout_kl"] / report["bigram_kl"],
                **{name: report[name] for name in FIGURES},
                "cores": os.cpu_count(),
                "machine": f"{platform.system()} {platform.machine()}",
                "versions": {name: version(name) for name in ("torch", "transformers", "pyarrow", "bitnet-cli")},
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
