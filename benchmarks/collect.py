"""Does the collector lose, double or exceed anything, and what does it cost? Against servers in their own processes.

uv run python -m benchmarks.collect            # all parts, some minutes
uv run python -m benchmarks.collect cpu        # one of: faults, cpu, gemini, throughput, scoring, sampling

- faults: 10,000 requests to a loopback server that fails 30 % of them (429 with and without Retry-After, 500, 503,
  connections cut before and within the answer, invalid JSON), below a limit of requests per minute. `lost` and
  `doubled` are counted in the shards, `over_limit` by the server: the most requests in any 60 seconds, less the limit.
- cpu: CPU time of the whole collection (HTTP, JSON, columns, journal, sha256, fsync, shards) for each completion of 128
  tokens with 20 candidates each, 200 requests at once, through the OpenAI-shaped teacher.
- gemini: the same through google-genai; `sdk_ms` is the SDK alone, handing the answers over unread as it does for us,
  `parsed_ms` the SDK as it comes, making records of its own of them.
- throughput: tokens per second of a collection from llama.cpp's server with 4 slots, as a share of what the official
  SDK gets in a plain gather; median of interleaved pairs.
- scoring: tokens per second of a collection that scores texts with the `local` teacher, as a share of the bare forward
  pass with log-softmax and top-20; median of interleaved pairs. Above 1: the teacher makes the logits in pieces that
  stay in the caches, the bare pass all at once.
- sampling: tokens per second of a collection whose answers the `local` teacher samples, 32 at once, as a share of what
  its matrix products alone make at 32 rows with weights that are packed beforehand; median of interleaved pairs. The
  rest is attention, norms, the draw, the candidates, and packing the weights anew at each product.

The shares are of one machine and one moment each; the last line is one JSON object.
"""

import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "packages/bitnet-providers/tests"))  # the loopback servers

REQUESTS = 10_000
FAULT_SHARE = 0.3
PER_MINUTE = 6_000
CPU_REQUESTS = 1_000
CPU_CONCURRENCY = 200
PAIRS = 5
SLOTS = 4
SAMPLED_AT_ONCE = 32

GEMINI = """
import asyncio, json, sys
from aiohttp import web
from loopback.gemini_server import logprobs_result, response
tokens = [f" word{index}" for index in range(128)]
body = json.dumps(response("".join(tokens), logprobs_result(tokens, 20)), separators=(",", ":")).encode()

async def answer(request):
    await request.read()
    await asyncio.sleep(0.5)
    return web.Response(body=body, content_type="application/json")

async def serve():
    app = web.Application()
    app.router.add_post("/v1beta/models/{call}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=2048).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.to_thread(sys.stdin.read)

asyncio.run(serve())
"""


def collection(folder: Path, lines: Sequence[str], **settings: Any) -> Any:
    from bitnet_providers.config import CollectConfig

    folder.mkdir(parents=True, exist_ok=True)
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(lines))
    return CollectConfig(prompts=prompts, **settings)


def server_teacher(url: str) -> Any:
    from bitnet_providers.teachers.openai_compatible.options import OpenAICompatibleConfig
    from bitnet_providers.teachers.openai_compatible.teacher import open_with_openai

    return open_with_openai(OpenAICompatibleConfig(base_url=url + "/v1", model="any"))


async def collected(teacher: Any, config: Any, raw: Path) -> dict[str, Any]:
    from bitnet_providers.collect.collect import collect

    return await collect(teacher, config, raw, "openai-compatible", 0)


def faults(folder: Path) -> dict[str, Any]:
    import pyarrow.parquet as pq

    from loopback.counting_server import counts_of, running

    lines = [f"question {number}" for number in range(REQUESTS)]
    config = collection(
        folder, lines, top_k=5, max_new_tokens=8, concurrency=64, requests_per_minute=PER_MINUTE, retry_wait_s=0.05
    )
    with running(tokens=8, candidates=5, latency_s=0.005, fault_share=FAULT_SHARE, retry_after="0.05", seed=1) as url:

        async def run() -> dict[str, Any]:
            teacher = server_teacher(url)
            try:
                return await collected(teacher, config, folder / "raw")
            finally:
                await teacher.aclose()

        summary = asyncio.run(run())
        counts = counts_of(url)
    there = Counter[str]()
    for path in (folder / "raw").glob("shard_*.parquet"):
        there.update(pq.read_table(path, columns=["source_id"])["source_id"].to_pylist())
    return {
        "lost": REQUESTS - len(there),
        "doubled": there.total() - len(there),
        "over_limit": max(0, counts["most_requests_in_a_minute"] - PER_MINUTE),
        "faults": {
            "requests_sent": sum(counts["arrived"].values()),
            "most_in_a_minute": counts["most_requests_in_a_minute"],
            "limit": PER_MINUTE,
            "retries": summary["retries"],
            "rate_limited": summary["rate_limited"],
            "possibly_paid": summary["spent"]["possibly_paid_requests"],
            "in_ledger": summary["spent"]["requests"],
            "seconds": summary["seconds"],
        },
    }


def cpu(folder: Path) -> dict[str, Any]:
    from loopback.counting_server import running

    lines = [f"question {number}" for number in range(CPU_REQUESTS)]
    settings: dict[str, Any] = {"top_k": 20, "max_new_tokens": 128, "concurrency": CPU_CONCURRENCY}
    with running(tokens=128, candidates=20, latency_s=0.5) as url:

        async def run() -> tuple[float, float]:
            teacher = server_teacher(url)
            await collected(teacher, collection(folder / "warm", lines[:20], **settings), folder / "warm/raw")
            config = collection(folder, lines, **settings)
            cpu_s, wall_s = time.process_time(), time.perf_counter()
            await collected(teacher, config, folder / "raw")
            spent = time.process_time() - cpu_s, time.perf_counter() - wall_s
            await teacher.aclose()
            return spent

        cpu_s, wall_s = asyncio.run(run())
    return {
        "cpu_ms_per_completion": 1e3 * cpu_s / CPU_REQUESTS,
        "cpu": {"completions": CPU_REQUESTS, "at_once": CPU_CONCURRENCY, "seconds": wall_s},
    }


def gemini(folder: Path) -> dict[str, Any]:
    from bitnet_providers.contract import GenerateRequest, Sampling
    from bitnet_providers.teachers.gemini.options import GeminiTeacherConfig
    from bitnet_providers.teachers.gemini.teacher import open_gemini

    lines = [f"question {number}" for number in range(CPU_REQUESTS // 2)]
    settings: dict[str, Any] = {"top_k": 20, "max_new_tokens": 128, "concurrency": CPU_CONCURRENCY}
    os.environ["GEMINI_API_KEY"] = "not-a-key"
    tests = str(ROOT / "packages/bitnet-providers/tests")
    with script(GEMINI, environment={"PYTHONPATH": tests}) as url:

        async def sdk(teacher: Any, count: int, raw: bool) -> float:
            """CPU milliseconds of a call."""
            numbers = iter(range(count))

            async def ask() -> None:
                for number in numbers:
                    message = {"role": "user", "content": f"question {number}"}
                    contents, config = teacher._arguments(GenerateRequest((message,), Sampling(1.0, 1.0, 128), 20))
                    config.should_return_http_response = raw
                    await teacher._client.aio.models.generate_content(model="any", contents=contents, config=config)

            cpu_s = time.process_time()
            await asyncio.gather(*(ask() for _ in range(CPU_CONCURRENCY)))
            return 1e3 * (time.process_time() - cpu_s) / count

        async def run() -> dict[str, float]:
            teacher = open_gemini(GeminiTeacherConfig(model="any", base_url=url))
            await collected(teacher, collection(folder / "warm", lines[:20], **settings), folder / "warm/raw")
            config = collection(folder, lines, **settings)
            cpu_s = time.process_time()
            await collected(teacher, config, folder / "raw")
            found = {"gemini_cpu_ms_per_completion": 1e3 * (time.process_time() - cpu_s) / len(lines)}
            found |= {
                "sdk_ms": await sdk(teacher, len(lines), raw=True),
                "parsed_ms": await sdk(teacher, 100, raw=False),
            }
            await teacher.aclose()
            return found

        found = asyncio.run(run())
    return {"gemini_cpu_ms_per_completion": found.pop("gemini_cpu_ms_per_completion"), "gemini": found}


@contextmanager
def script(text: str, environment: Mapping[str, str]) -> Iterator[str]:
    """A server in a process of its own, until its standard input ends; gives the URL that it prints."""
    process = subprocess.Popen(
        [sys.executable, "-c", text],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | environment,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield next((line.strip() for line in process.stdout if line.startswith("http")), "")
    finally:
        process.stdin.close()
        process.wait(30)


def throughput(folder: Path) -> dict[str, Any]:
    import openai

    from bitnet_providers.teachers.local.model_source import find_embedded
    from loopback import llamacpp_server

    lines = [f"Write one sentence about the number {number}." for number in range(24)]
    tokens = 32

    with llamacpp_server.running(find_embedded(), threads=-1, n_ctx=4096, n_parallel=SLOTS, warmup=False) as url:

        async def bare(client: Any) -> float:
            """Tokens per second of the official SDK, everything at once."""
            started = time.perf_counter()
            answers = await asyncio.gather(
                *(
                    client.chat.completions.create(
                        model="any",
                        messages=[{"role": "user", "content": line}],
                        max_tokens=tokens,
                        temperature=1.0,
                        logprobs=True,
                        top_logprobs=20,
                        seed=number,
                    )
                    for number, line in enumerate(lines)
                )
            )
            total = sum(answer.usage.completion_tokens for answer in answers)
            return total / (time.perf_counter() - started)

        async def ours(teacher: Any, raw: Path) -> float:
            config = collection(folder, lines, top_k=20, max_new_tokens=tokens, concurrency=8)
            started = time.perf_counter()
            summary = await collected(teacher, config, raw)
            return summary["spent"]["output_tokens"] / (time.perf_counter() - started)

        async def run() -> tuple[list[float], list[float]]:
            client, teacher = openai.AsyncOpenAI(base_url=url + "/v1", api_key="none"), server_teacher(url)
            await bare(client)
            await ours(teacher, folder / "warm")
            pairs = [(await bare(client), await ours(teacher, folder / f"raw-{pair}")) for pair in range(PAIRS)]
            await client.close()
            await teacher.aclose()
            return [each[0] for each in pairs], [each[1] for each in pairs]

        theirs, own = asyncio.run(run())
    return _fraction("throughput", theirs, own)


def scoring(folder: Path) -> dict[str, Any]:
    import torch

    from bitnet_providers.config import CollectConfig
    from bitnet_providers.prompts.load_prompts import load_texts
    from bitnet_providers.teachers.local.options import LocalTeacherConfig
    from bitnet_providers.teachers.local.scoring import FORWARD_TOKENS_CPU
    from bitnet_providers.teachers.local.teacher import open_local

    folder.mkdir(parents=True, exist_ok=True)
    texts = [each.text for each in load_texts(ROOT / "manifests/data/corpus.jsonl")[:48]]
    (folder / "texts.jsonl").write_text(
        "\n".join(json.dumps({"id": str(number), "text": text}) for number, text in enumerate(texts))
    )
    config = CollectConfig(texts=folder / "texts.jsonl", top_k=20, max_text_tokens=512)
    teacher = open_local(LocalTeacherConfig(device="cpu"))
    model, tokenizer = teacher._model, teacher._tokenizer
    rows = sorted((tokenizer(text).input_ids[:512] for text in texts), key=len)
    batches: list[list[list[int]]] = [[]]
    for row in rows:  # as big as the teacher's own, by length
        if batches[-1] and (len(batches[-1]) + 1) * len(row) > FORWARD_TOKENS_CPU:
            batches.append([])
        batches[-1].append(row)

    @torch.inference_mode()
    def bare() -> float:
        started = time.perf_counter()
        for batch in batches:
            ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in batch], batch_first=True)
            mask = torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in batch])[:, None]
            logits = model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits[mask].float()
            torch.log_softmax(logits, -1).topk(20)
        return sum(map(len, rows)) / (time.perf_counter() - started)

    async def run() -> tuple[list[float], list[float]]:
        async def ours(raw: Path) -> float:
            started = time.perf_counter()
            summary = await collected(teacher, config, raw)
            return float(summary["tokens"] / (time.perf_counter() - started))

        bare()
        await ours(folder / "warm")
        pairs = [(bare(), await ours(folder / f"raw-{pair}")) for pair in range(PAIRS)]
        await teacher.aclose()
        return [each[0] for each in pairs], [each[1] for each in pairs]

    return _fraction("scoring", *asyncio.run(run()))


def sampling(folder: Path) -> dict[str, Any]:
    import torch

    from bitnet_providers.teachers.local.options import LocalTeacherConfig
    from bitnet_providers.teachers.local.teacher import open_local

    lines = [f"Write one sentence about the number {number}." for number in range(4 * SAMPLED_AT_ONCE)]
    config = collection(folder, lines, top_k=20, max_new_tokens=48, concurrency=SAMPLED_AT_ONCE)
    teacher = open_local(LocalTeacherConfig(device="cpu"))
    weights = [each.weight.detach().bfloat16() for each in teacher._model.modules() if type(each) is torch.nn.Linear]
    packed = [torch.ops.mkldnn._reorder_linear_weight(weight, SAMPLED_AT_ONCE) for weight in weights]
    inputs = [torch.randn(SAMPLED_AT_ONCE, weight.shape[1]).bfloat16() for weight in weights]

    @torch.inference_mode()
    def bare(steps: int = 20) -> float:
        started = time.perf_counter()
        for _ in range(steps):
            for rows, weight in zip(inputs, packed, strict=True):
                torch.ops.mkldnn._linear_pointwise(rows, weight, None, "none", [], "")
        return steps * SAMPLED_AT_ONCE / (time.perf_counter() - started)

    async def run() -> tuple[list[float], list[float]]:
        async def ours(raw: Path) -> float:
            started = time.perf_counter()
            summary = await collected(teacher, config, raw)
            return float(summary["tokens"] / (time.perf_counter() - started))

        bare(1)
        await ours(folder / "warm")
        pairs = [(bare(), await ours(folder / f"raw-{pair}")) for pair in range(PAIRS)]
        await teacher.aclose()
        return [each[0] for each in pairs], [each[1] for each in pairs]

    return _fraction("sampling", *asyncio.run(run()))


def _fraction(name: str, theirs: Sequence[float], own: Sequence[float]) -> dict[str, Any]:
    shares = [mine / bare for bare, mine in zip(theirs, own, strict=True)]
    return {
        f"{name}_fraction": statistics.median(shares),
        name: {"bare_tokens_per_s": list(theirs), "collector_tokens_per_s": list(own), "fractions": shares},
    }


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "faults": faults,
    "cpu": cpu,
    "gemini": gemini,
    "throughput": throughput,
    "scoring": scoring,
    "sampling": sampling,
}


def main() -> None:
    wanted = sys.argv[1:] or list(PARTS)
    result: dict[str, Any] = {}
    for name in wanted:
        print(f"{name} ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            result |= PARTS[name](Path(folder) / name)
    machine = {"machine": f"{platform.system()} {platform.machine()}", "python": platform.python_version()}
    print(json.dumps(result | machine))


if __name__ == "__main__":
    main()
