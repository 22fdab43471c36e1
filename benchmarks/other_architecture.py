"""How far is a real model of another architecture from itself once ternary? Figures of docs/other-architectures.md.

    uv run python -m benchmarks.other_architecture FOLDER [--tokens 4000]

FOLDER: a full-precision model of transformers with its tokenizer. It is calibrated on the shipped corpus, and compared
with itself on texts of the corpus that were kept apart; beside it the start that fits the weights alone. CPU-heavy.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from bitnet_core.calibration.calibrate import WORK, Calibration, begin, calibrate_layer, finish
from bitnet_core.calibration.documents import batches_of
from bitnet_core.calibration.work import Work
from bitnet_core.config.calibration import CalibrationConfig
from bitnet_core.config.student import TEACHERS, StudentConfig
from bitnet_core.hardware import best_device
from bitnet_core.model.inference_copy import snapped
from bitnet_core.model.read_checkpoint import load_model
from bitnet_core.model.start_student import start_student
from bitnet_core.model.start_whole_model import open_whole_start
from bitnet_core.ternary.bitlinear import ternary_layers
from bitnet_core.ternary.model_bytes import packed_bytes

CORPUS = Path(__file__).parents[1] / "manifests/data/corpus.jsonl"
HELD_OUT = 16
"""Texts that are measured on."""
LONGEST = 160
"""Tokens kept of a text."""


def documents(tokenizer: Any) -> list[Tensor]:
    texts = [json.loads(line)["text"] for line in CORPUS.read_text(encoding="utf-8").splitlines()]
    return [torch.tensor(tokenizer(text).input_ids[:LONGEST]) for text in texts if len(text) > 400]


def calibrated(folder: Path, student: StudentConfig, chosen: Sequence[Tensor], out: Path) -> dict[str, Any]:
    """Write the start into ``out/start`` and return the record."""
    device = best_device()
    start = open_whole_start(folder, student, device)
    batches = list(batches_of(sorted(chosen, key=len, reverse=True)))
    work = Work(start, batches, out / WORK, device, torch.float32, "fp32")
    job = Calibration(
        data_folder=folder, tokenizer_folder=folder, checkpoint=folder, folder=out, student=student,
        config=CalibrationConfig(), max_seq_len=LONGEST, precision="fp32", seed=0, fingerprint="",
    )  # fmt: skip
    with torch.no_grad():
        record = begin(work, job)
        for index in range(start.layers):
            record["layers"].append(calibrate_layer(work, index))
            print(f"layer {index}: relative error {record['layers'][-1]['stream_error']:.3f}", flush=True)
        return finish(work, job, record)


@torch.no_grad()
def log_probabilities(model: Any, texts: Sequence[Tensor]) -> list[Tensor]:
    """[T, V] of each text, nats."""
    return [model.eval()(ids[None]).logits[0].log_softmax(-1) for ids in texts]


def told(name: str, ours: Sequence[Tensor], theirs: Sequence[Tensor], texts: Sequence[Tensor]) -> str:
    positions, targets = sum(map(len, texts)), sum(len(ids) - 1 for ids in texts)
    kl = sum(float((p.exp() * (p - q)).sum()) for p, q in zip(theirs, ours, strict=True)) / positions
    same = sum(float((p.argmax(-1) == q.argmax(-1)).sum()) for p, q in zip(theirs, ours, strict=True)) / positions
    nll = -sum(float(q[:-1].gather(1, ids[1:, None]).sum()) for q, ids in zip(ours, texts, strict=True)) / targets
    return f"| {name} | {kl:.2f} | {same:.2f} | {math.exp(min(nll, 50)):.3g} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=4000)
    given = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(given.folder, trust_remote_code=False)
    texts = documents(tokenizer)
    held_out, chosen = texts[:HELD_OUT], []
    for ids in texts[HELD_OUT:]:
        if sum(map(len, chosen)) < given.tokens:
            chosen.append(ids)
    student = StudentConfig(init_from=str(given.folder), architecture=TEACHERS)
    dense = AutoModelForCausalLM.from_pretrained(given.folder, dtype=torch.float32, trust_remote_code=False)
    theirs = log_probabilities(dense, held_out)
    del dense
    with tempfile.TemporaryDirectory() as under:
        record = calibrated(given.folder, student, chosen, Path(under))
        model = load_model(Path(under) / "start")
    lines = [
        f"{len(list(ternary_layers(model)))} ternary linears, {record['tokens']:,} tokens",
        "| | KL to the dense model, nats | top-1 agreement | perplexity |\n|---|---|---|---|",
        told("dense", theirs, theirs, held_out),
        told("calibrated", log_probabilities(model, held_out), theirs, held_out),
    ]
    lines.append(f"packed: {packed_bytes(snapped(model)) / 1e6:.0f} MB")
    del model
    plain = start_student(student, None, len(tokenizer))
    lines.insert(3, told("least squares", log_probabilities(plain, held_out), theirs, held_out))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
