"""What 1, 2 and 4 processes of one training take and send, beside what they must: memory of each, bytes by gloo.

    python -m benchmarks.many_processes [--processes 1,2,4]

A plain Llama checkpoint of 60 M parameters is the start; each process reads its rows, learns three steps in float32 on
made-up traces, and writes its rows of the checkpoint. Memory is what a process holds by itself (RssAnon, looked at
every two milliseconds) beyond what it held with its libraries loaded and the group joined: the most of it while the
student is opened, learns, and is saved. `must` is 16 bytes a parameter, shared, and a gathered layer with the tables;
activations, and what a kernel needs, come on top. Bytes sent are those of the collectives that a step calls, each as a
ring sends it; `must` is `bitnet_core.dry_run.communication`'s formula. The last line is one JSON object.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

SIZES = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 12}
VOCABULARY, K, DOCUMENTS, LENGTH, STEPS = 2048, 4, 24, 64, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", default="1,2,4")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(Path(options.worker))
        return
    from benchmarks.kd_loss import cpu_name
    from benchmarks.stale import stamped

    rows = []
    with tempfile.TemporaryDirectory() as place:
        parameters, layer, rest = prepare(Path(place))
        for count in map(int, options.processes.split(",")):
            found = train_on(count, Path(place))
            rows.append(row(count, found, parameters, layer, rest))
            print(json.dumps(rows[-1]), file=sys.stderr)
    figures = {
        "parameters": parameters,
        "layer_parameters": layer,
        "documents": 4,
        "tokens_a_document": LENGTH,
        "rows": rows,
        "cpu": cpu_name(),
        "torch": torch.__version__,
    }
    print(json.dumps(stamped("many_processes", figures), indent=1))


def row(count: int, found: list[dict[str, Any]], parameters: int, layer: int, rest: int) -> dict[str, Any]:
    """What the worst of the processes took, beside what it must."""
    from bitnet_core.dry_run.communication import volume

    shared = 16 * parameters // count
    gathered = 4 * (layer + rest) if count > 1 else 0
    sent = volume(layer, SIZES["num_hidden_layers"], rest, count)
    must = shared + gathered
    worst = {name: max(each["memory"][name] for each in found) for name in found[0]["memory"]}
    total = max(each["sent"]["all_gather"] + each["sent"]["reduce_scatter"] for each in found)
    return {
        "processes": count,
        "memory_bytes": worst,
        "memory_must_bytes": {"shared": shared, "gathered": gathered},
        "memory_over_must": round(max(worst.values()) / must, 3),
        "sent_bytes": {name: max(each["sent"][name] for each in found) for name in found[0]["sent"]},
        "sent_must_bytes": {"all_gather": sent.gathered, "reduce_scatter": sent.scattered},
        "sent_over_must": round(total / sent.total, 4) if sent.total else None,
    }


def prepare(place: Path) -> tuple[int, int, int]:
    """The start, the tokenizer and the traces in `place`; parameters in all, of a layer, and of what is in none."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from bitnet_core.config.student import StudentConfig
    from bitnet_core.model.start_layer_by_layer import open_start
    from bitnet_core.traces.schema import KDMetadata
    from bitnet_core.traces.tokenizer import tokenizer_identity
    from bitnet_core.traces.write_shards import kd_table, write_kd_shard

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=4, tie_word_embeddings=False, **SIZES)
    LlamaForCausalLM(config).save_pretrained(place / "start")
    model = open_start(place / "start", StudentConfig(init_from=str(place / "start"))).skeleton()
    parameters = sum(each.numel() for each in model.parameters())
    layer = sum(each.numel() for each in model.model.layers[0].parameters())

    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w1", pad_token="w1", unk_token="w0")
    fast.save_pretrained(place / "tokenizer")
    sha256, vocabulary = tokenizer_identity(place / "tokenizer")
    rows = DOCUMENTS * LENGTH
    tokens = np.random.default_rng(0).integers(2, VOCABULARY, rows)
    step = np.tile(np.arange(LENGTH), DOCUMENTS)
    logprobs = np.log(np.tile(np.array([0.7, 0.1, 0.05, 0.05]), (rows, 1))).astype(np.float16)
    columns = {
        "prompt_idx": np.repeat(np.arange(DOCUMENTS), LENGTH),
        "sample_idx": np.zeros(rows, np.int32),
        "step_idx": step.astype(np.int32),
        "teacher_sample_id": tokens.astype(np.int32),
        "other_logprob": np.full(rows, np.log(0.1), np.float32),
        "is_struct_token": np.zeros(rows, bool),
        "teacher_sample_text": [b"w"] * rows,
        "is_prompt": step < 2,
        "has_kd": step >= 2,
        "sample_logprob": np.full(rows, np.log(0.7), np.float32),
        "split": ["heldout" if document % 6 == 0 else "train" for document in np.repeat(np.arange(DOCUMENTS), LENGTH)],
    }
    ids = ((tokens[:, None] + np.arange(K)) % VOCABULARY).astype(np.int32)
    metadata = KDMetadata(k=K, vocab_size=vocabulary, tokenizer_sha256=sha256, raw={}, projection={"path": "identity"})
    (place / "data").mkdir()
    write_kd_shard(place / "data/kd_shard_000.parquet", kd_table(columns, ids, logprobs), metadata)
    return parameters, layer, parameters - layer * SIZES["num_hidden_layers"]


def train_on(count: int, place: Path) -> list[dict[str, Any]]:
    """What each of `count` processes measured."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    world = {
        "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "OMP_NUM_THREADS": "1",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    command = [sys.executable, "-m", "benchmarks.many_processes", "--worker", str(place)]
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | world | {"RANK": str(rank)})
        for rank in range(count)
    ]
    lines = [process.communicate()[0].splitlines()[-1] for process in started]
    return [json.loads(line) for line in lines]


def work(place: Path) -> None:
    """One of the processes: trains, and prints what it took and sent."""
    from bitnet_core.config.loss import TopKOtherConfig
    from bitnet_core.config.student import StudentConfig
    from bitnet_core.config.train import TrainConfig
    from bitnet_core.losses.chunked import load_loss
    from bitnet_core.training import loop, setup
    from bitnet_core.training.setup import Job

    count = int(os.environ["WORLD_SIZE"])
    settings = TrainConfig(
        steps=STEPS, batch_size=4, learning_rate=1e-4, precision="fp32", validate_every=0, checkpoint_every=STEPS
    )
    job = Job(
        data_folder=place / "data",
        tokenizer_folder=place / "tokenizer",
        teacher_folder=None,
        student=StudentConfig(init_from=str(place / "start")),
        loss=load_loss(TopKOtherConfig()),
        train=settings,
        seed=0,
        checkpoint_folder=place / f"{count}/checkpoints",
        metrics_file=place / f"{count}/metrics.jsonl",
        fingerprint="benchmark",
    )
    memory = Memory()
    sent: dict[str, int] = {}
    resume, learn, save = setup.resume, loop.learn, loop.save

    def joined(*arguments: Any) -> Any:
        memory.begin()
        return resume(*arguments)

    def learned(*arguments: Any) -> Any:
        memory.phase = "learning"
        with counted(sent):  # the last step's stay
            return learn(*arguments)

    def saved(*arguments: Any) -> Any:
        memory.phase = "saving"
        return save(*arguments)

    setup.resume, loop.learn, loop.save = joined, learned, saved  # type: ignore[assignment]
    loop.make_plain = lambda checkpoint: None  # after the training, and by the first process alone
    loop.train(job, lambda done, total, note: None)
    print(json.dumps({"memory": memory.most, "sent": sent}), flush=True)
    os._exit(0)


class Memory:
    """The most that this process has held by itself in each phase, beyond what it held at the beginning."""

    def __init__(self) -> None:
        self.phase = "opening"
        self.most: dict[str, int] = {}
        self.empty = 0

    def begin(self) -> None:
        self.empty = anonymous_bytes()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.most[self.phase] = max(self.most.get(self.phase, 0), anonymous_bytes() - self.empty)
            time.sleep(0.002)


def anonymous_bytes() -> int:
    """Resident memory without the pages of files, which the system may drop."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


@contextlib.contextmanager
def counted(sent: dict[str, int]) -> Iterator[None]:
    """Within it, what the collectives of FSDP and of sums send, as a ring sends it."""
    sent.update(all_gather=0, reduce_scatter=0, all_reduce=0)
    gather, scatter, reduce = dist.all_gather_single, dist.reduce_scatter_single, dist.all_reduce
    count = dist.get_world_size() if dist.is_initialized() else 1

    def gathering(*tensors: Any, **named: Any) -> Any:
        own = named["input_tensor"] if "input_tensor" in named else tensors[1]
        sent["all_gather"] += own.nbytes * (count - 1)
        return gather(*tensors, **named)

    def scattering(*tensors: Any, **named: Any) -> Any:
        own = named["output"] if "output" in named else tensors[0]
        sent["reduce_scatter"] += own.nbytes * (count - 1)
        return scatter(*tensors, **named)

    def reducing(tensor: torch.Tensor, *more: Any, **named: Any) -> Any:
        sent["all_reduce"] += 2 * tensor.nbytes * (count - 1) // count
        return reduce(tensor, *more, **named)

    dist.all_gather_single, dist.reduce_scatter_single, dist.all_reduce = gathering, scattering, reducing
    try:
        yield
    finally:
        dist.all_gather_single, dist.reduce_scatter_single, dist.all_reduce = gather, scatter, reduce


if __name__ == "__main__":
    main()
