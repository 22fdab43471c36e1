"""A teacher that answers the same to the same question, in whatever process it is opened."""

import asyncio
import hashlib
import os
import signal
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from bitnet_cli.contract import ClusterConfig, Launcher
from bitnet_cli.stages.collect_on_workers import OnWorkers, facts_of
from bitnet_providers.collect.collect import collect, prepare
from bitnet_providers.config import CollectConfig
from bitnet_providers.contract import Capabilities, Completion, GenerateRequest, ProviderError, RetryableError
from bitnet_storage.config import LocalStoreConfig
from bitnet_storage.contract import Objects, StorageError, Store
from bitnet_storage.plugin import bitnet_stores

CAPABILITIES = Capabilities(max_top_logprobs=2, token_ids=False, token_bytes=True, scoring=False, external=True)


@attrs.frozen
class Parrot:
    """`asked`: a file with a line for each question that came."""

    asked: Path
    model: str = "parrot"
    capabilities: Capabilities = CAPABILITIES

    @property
    def description(self) -> Mapping[str, Any]:
        return {"model": self.model}

    async def generate(self, request: GenerateRequest) -> Completion:
        text = request.messages[-1]["content"]
        with self.asked.open("ab", buffering=0) as file:  # O_APPEND: whole lines from many processes
            file.write(f"{os.getpid()} {text}\n".encode())
        await self._misbehave(text)
        said = hashlib.sha256(f"{text} {request.sampling.seed}".encode()).hexdigest()[:8]
        return Completion(
            text=said.encode(),
            token_logprobs=np.array([-0.5, -1.5], np.float32),
            candidate_counts=np.array([2, 2], np.int32),
            candidate_logprobs=np.array([-0.5, -2.0, -1.5, -1.75], np.float32),
            candidate_bytes=(said[:4].encode(), b"no", said[4:].encode(), b"yes"),
            token_bytes=(said[:4].encode(), said[4:].encode()),
            finish_reason="stop",
            model=self.model,
            prompt_tokens=5,
            latency_s=0.25,
            usage={"prompt_tokens": 5, "completion_tokens": 2},
        )

    async def _misbehave(self, text: str) -> None:
        if text.startswith("gate"):
            while not self.asked.with_name(text.partition(":")[0]).exists():
                await asyncio.sleep(0.02)
        once = self.asked.with_name(hashlib.sha256(text.encode()).hexdigest())
        if text.startswith("die") and not once.exists():
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if text.startswith("always die"):
            os.kill(os.getpid(), signal.SIGKILL)
        if text.startswith("busy") and not once.exists():
            once.touch()
            raise RetryableError("busy", overloaded=True)
        if text.startswith("wrong key"):
            raise ProviderError("the key is wrong", "set it")

    async def score(self, request: object) -> Completion:
        raise ProviderError("no scores")

    async def aclose(self) -> None:
        return


@attrs.frozen
class BalkyObjects:
    """Takes nothing as long as there is a file `flag`."""

    objects: Objects
    flag: Path

    def __getattr__(self, name: str) -> Any:
        return getattr(self.objects, name)

    def put(self, key: str, source: Path | bytes) -> None:
        if self.flag.exists():
            raise StorageError("the network is down")
        self.objects.put(key, source)


def open_balky_store(root: Path, flag: Path) -> Store:
    plugin = next(each for each in bitnet_stores() if each.name == "local")
    store = plugin.open(LocalStoreConfig(root=root / "store", work=root / "work"))
    return attrs.evolve(store, objects=BalkyObjects(store.objects, flag))


@attrs.frozen
class Folders:
    root: Path

    @property
    def raw(self) -> Path:
        return self.root / "raw"

    @property
    def asked(self) -> Path:
        return self.root / "asked.txt"

    def questions(self) -> list[str]:
        lines = self.asked.read_text().splitlines() if self.asked.exists() else []
        return [line.partition(" ")[2] for line in lines]

    def shards(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.raw.glob("shard_*.parquet"))}


def config_of(folder: Path, prompts: list[str], **settings: Any) -> CollectConfig:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "prompts.txt"
    file.write_text("\n".join(prompts))
    return CollectConfig(
        **{"prompts": file, "top_k": 2, "max_new_tokens": 4, "retry_wait_s": 0.01, "completions_per_shard": 16}
        | settings
    )


async def collect_with(
    launcher: Launcher | None, folders: Folders, config: CollectConfig, lease: int = 5, **more: Any
) -> dict[str, Any]:
    """A collection with a launcher's workers, or in this process; returns the summary, its notes as ``notes``."""
    parrot, notes = Parrot(folders.asked), []
    before = prepare(parrot, config, folders.raw, "parrot", 7)
    asking = None
    if launcher is not None:
        asking = OnWorkers(
            launcher=launcher,
            options=ClusterConfig(lease=lease),
            open_teacher=partial(Parrot, folders.asked, more.pop("model", "parrot")),
            teacher=facts_of(parrot),
            config=config,
            raw_folder=folders.raw,
            logs=folders.root / "logs",
            notify=notes.append,
            **more,
        ).ask
    summary = await collect(parrot, config, folders.raw, "parrot", 7, before=before, asking=asking)
    return summary | {"notes": notes}
