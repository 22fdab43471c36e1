"""How much memory does a collection take for each completion? One that is all paid for, and one that is being asked.

uv run python -m benchmarks.collect_memory            # 10,000 and 100,000 tiny completions, some minutes

Each collection is a process of its own, so that its peak is its own: `asked` gathers everything from a teacher in the
same process, `resumed` finds everything in the journal and writes the shards again. `bytes_a_completion` is the
difference of the two sizes' peaks by that of their completions: what grows, without what every process has. Once with
samples of few prompts, once with a prompt for each completion.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SIZES = (10_000, 100_000)
SAMPLES = 100
"""Completions of each prompt, where there are few prompts."""
PER_SHARD = 512


class Teacher:
    """Answers at once, with three tokens."""

    def __init__(self) -> None:
        from bitnet_providers.contract import Capabilities

        self.capabilities = Capabilities(
            max_top_logprobs=0, token_ids=False, token_bytes=True, scoring=False, external=False
        )
        self.description = {"model": "tiny"}
        self.asked = 0

    async def generate(self, request: Any) -> Any:
        import numpy as np

        from bitnet_providers.contract import Completion

        self.asked += 1
        return Completion(
            text=b"a b c",
            token_bytes=(b"a ", b"b ", b"c"),
            token_logprobs=np.full(3, -1.0, np.float32),
            candidate_counts=np.zeros(3, np.int32),
            candidate_logprobs=np.zeros(0, np.float32),
            candidate_bytes=(),
            finish_reason="stop",
            model="tiny",
            prompt_tokens=3,
            latency_s=0.1,
            usage={"prompt_tokens": 3, "completion_tokens": 3},
        )

    async def aclose(self) -> None:
        return


def one(folder: Path, completions: int, samples: int) -> None:
    """Collect; prints what it took as JSON."""
    import asyncio

    from bitnet_providers.collect.collect import collect
    from bitnet_providers.config import CollectConfig

    prompts = folder / "prompts.txt"
    if not prompts.exists():
        prompts.write_text("\n".join(f"question {n}" for n in range(completions // samples)))
    config = CollectConfig(
        prompts=prompts, samples_per_prompt=samples, top_k=0, concurrency=256, completions_per_shard=PER_SHARD
    )
    teacher, started = Teacher(), time.perf_counter()
    summary = asyncio.run(collect(teacher, config, folder / "raw", "tiny", 0))
    assert summary["completions"] == completions
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"peak": peak, "seconds": time.perf_counter() - started, "asked": teacher.asked}))


def measure(samples: int) -> dict[str, Any]:
    found: dict[str, dict[int, Any]] = {"asked": {}, "resumed": {}}
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            for name, results in found.items():
                command = [sys.executable, "-m", "benchmarks.collect_memory", folder, str(size), str(samples)]
                results[size] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
                assert (results[size]["asked"] == 0) == (name == "resumed")
    few, many = SIZES
    return {
        name: {
            "bytes_a_completion": round((results[many]["peak"] - results[few]["peak"]) / (many - few)),
            "peak_mb": {size: round(each["peak"] / 1e6, 1) for size, each in results.items()},
            "seconds": {size: round(each["seconds"], 1) for size, each in results.items()},
        }
        for name, results in found.items()
    }


def main() -> None:
    results = {f"{samples} samples a prompt": measure(samples) for samples in (SAMPLES, 1)}
    print(json.dumps({"completions": SIZES, "completions_per_shard": PER_SHARD, **results}, indent=1))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        one(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
