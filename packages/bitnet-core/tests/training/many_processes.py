"""What each of torchrun's processes runs in test_many_devices.py: one training, described by a JSON file."""

import json
import sys
from pathlib import Path

from bitnet_core.chunked_loss import load_topk_other
from bitnet_core.config import StudentConfig, TopKOtherConfig, TrainConfig
from bitnet_core.training.loop import train

spec = json.loads(Path(sys.argv[1]).read_text())
folder = Path(spec["folder"])
train(
    data_folder=Path(spec["data"]),
    tokenizer_folder=Path(spec["tokenizer"]),
    teacher_folder=None,
    student=StudentConfig(**spec["student"]),
    loss=load_topk_other(TopKOtherConfig()),
    train=TrainConfig(**spec["train"]),
    seed=3,
    checkpoint_folder=folder / "checkpoints",
    metrics_file=folder / "metrics.jsonl",
    fingerprint="these settings",
    on_progress=lambda done, total, note: None,
)
