"""Killed again and again while a server answers: what is in the journal is not asked for again, all is counted."""

import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from bitnet_providers.raw.journal import read_journal
from bitnet_providers.raw.ledger import read_ledger
from loopback.counting_server import counts_of, running

REQUESTS = 400
AT_ONCE = 8
KILLS = 20

COLLECT = """
import asyncio, json, sys, types
from pathlib import Path

# Arrow imports pandas where there is one: seconds for each of twenty processes.
sys.modules["pandas"] = types.ModuleType("pandas")
sys.modules["pandas"].__version__ = "0.1"

import aiohttp
import numpy as np

from bitnet_providers.collect.collect import collect
from bitnet_providers.config import CollectConfig
from bitnet_providers.contract import Capabilities, Completion

url, prompts, raw, at_once = sys.argv[1:]

class Teacher:
    capabilities = Capabilities(max_top_logprobs=0, token_ids=False, token_bytes=True, scoring=False, external=True)
    description = {"model": "counting-1"}

    def __init__(self, session):
        self.session = session

    async def generate(self, request):
        asked = {"messages": request.messages, "seed": request.sampling.seed, "max_tokens": 8}
        async with self.session.post(url + "/v1/chat/completions", json=asked) as response:
            said = await response.json()
        text = said["choices"][0]["message"]["content"].encode()
        return Completion(
            text=text, token_bytes=(text,), token_logprobs=np.full(1, np.nan, np.float32),
            candidate_counts=np.zeros(1, np.int32), candidate_logprobs=np.zeros(0, np.float32), candidate_bytes=(),
            finish_reason="stop", model=said["model"], prompt_tokens=12, latency_s=0.1, usage=said["usage"],
        )

def told(done, total, note):
    print(done, flush=True)

async def main():
    async with aiohttp.ClientSession() as session:
        config = CollectConfig(prompts=Path(prompts), concurrency=int(at_once), max_new_tokens=8)
        print(json.dumps(await collect(Teacher(session), config, Path(raw), "little", 0, told)))

asyncio.run(main())
"""


def by_prompt(counts: dict[str, Any]) -> Counter[str]:
    """How often each prompt has been asked."""
    asked = Counter[str]()
    for key, times in counts["arrived"].items():
        asked[key.partition(" | ")[0]] += times
    return asked


@pytest.mark.slow
def test_twenty_kills_at_random_moments(tmp_path: Path) -> None:
    prompts, raw = tmp_path / "prompts.txt", tmp_path / "raw"
    prompts.write_text("\n".join(f"question {n}" for n in range(REQUESTS)))
    draw = random.Random(0)

    with running(tokens=8, candidates=5, latency_s=0.05) as url:

        def begin() -> "subprocess.Popen[str]":
            return subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", COLLECT, url, str(prompts), str(raw), str(AT_ONCE)],
                stdout=subprocess.PIPE,
                text=True,
            )

        kept: dict[str, int] = {}
        """Prompts in the journal, and how often the server had been asked them when they were first found there."""
        for kill in range(KILLS):
            process = begin()
            assert process.stdout is not None
            for _ in range(1 + draw.randrange(3)):  # it is about to ask, or has kept one group of answers, or two
                process.stdout.readline()
            time.sleep(draw.uniform(0.0, 0.1))
            process.kill()
            process.wait()
            time.sleep(0.06)  # what is under way ends at the server
            after, journal = counts_of(url), read_journal(raw)
            ledger = read_ledger(raw, journal, None)
            arrived = sum(after["arrived"].values())
            # each request that the server has seen is in the ledger, and at most those under way had not arrived yet
            assert arrived <= ledger.spent.requests <= arrived + AT_ONCE * (kill + 1)
            assert ledger.spent.possibly_paid <= AT_ONCE * (kill + 1)
            asked = by_prompt(after)
            for row in journal.rows.values():
                prompt = json.loads(row.batch.column("messages")[row.index].as_py())[-1]["content"]
                assert kept.setdefault(prompt, asked[prompt]) == asked[prompt], f"{prompt} was asked again"

        process = begin()
        output, _ = process.communicate(timeout=120)
        summary = json.loads(output.splitlines()[-1])
        asked = by_prompt(counts_of(url))

    assert summary["completions"] == REQUESTS
    assert summary["reused"] == len(kept) > 0
    rows = pq.read_table(raw / "shard_000.parquet")
    assert rows["source_id"].to_pylist() == [str(n) for n in range(1, REQUESTS + 1)]
    assert all(asked[prompt] == times for prompt, times in kept.items())
    assert len(asked) == REQUESTS
    repeated = asked.total() - REQUESTS
    assert 0 < repeated <= KILLS * AT_ONCE, "a kill costs the requests under way, and no more"
    assert repeated <= summary["spent"]["requests"] - REQUESTS, "what is asked for again is paid, and in the ledger"
    assert 0 < summary["spent"]["possibly_paid_requests"] <= KILLS * AT_ONCE, "only those under way may be paid"
