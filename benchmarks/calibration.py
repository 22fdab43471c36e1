"""What a calibrated start is worth before any training, and what it costs: `python -m benchmarks.calibration`.

The quickstart's traces and teacher, all of its layers: held-out KL of the untrained student by least squares, and
calibrated on 10,000, 20,000 and 50,000 tokens; CPU seconds of the calibration. One thread. `--data` names a run folder
that has traces; without it the quickstart's stages up to project run into a folder of their own.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from bitnet_cli.environment import cpu_name
from bitnet_core.calibration.calibrate import Calibration, calibrate
from bitnet_core.config.calibration import CalibrationConfig, calibrated_student
from bitnet_core.config.student import StudentConfig
from bitnet_core.evaluation.heldout import score_documents, summary
from bitnet_core.model.init_from import build_student
from bitnet_core.traces.dataset import KDTraceDataset
from bitnet_providers.teachers.local.model_source import model_folder

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "calibration.json"
MAX_SEQ_LEN, BATCH, SEED = 512, 8, 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a run folder with traces of the quickstart")
    parser.add_argument("--tokens", type=int, nargs="*", default=[10_000, 20_000, 50_000])
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        run = arguments.data or make_traces(Path(work))
        rows = [measured(run, Path(work), tokens) for tokens in (None, *arguments.tokens)]
    record = {
        "command": " ".join(["python", "-m", "benchmarks.calibration", *sys.argv[1:]]),
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip(),
        "machine": cpu_name(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": 1,
        "starts": rows,
    }
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")


def make_traces(folder: Path) -> Path:
    command = ["bitnet", "run", str(ROOT / "manifests" / "quickstart.toml"), "--stages", "storage,collect,project"]
    subprocess.run([*command, "--set", f'store.root="{folder}"'], check=True)
    return folder / "quickstart"


def measured(run: Path, work: Path, tokens: int | None) -> dict[str, Any]:
    """Held-out figures of one untrained student; tokens None: started by least squares."""
    student = StudentConfig(init_from=str(teacher_folder()))
    row: dict[str, Any] = {"start": "least_squares" if tokens is None else "calibrated"}
    if tokens is not None:
        folder = work / f"calibrated_{tokens}"
        record = calibrate(
            Calibration(
                data_folder=run / "data",
                tokenizer_folder=teacher_folder(),
                checkpoint=teacher_folder(),
                folder=folder,
                student=student,
                config=CalibrationConfig(tokens=tokens),
                max_seq_len=MAX_SEQ_LEN,
                precision="auto",
                seed=SEED,
                fingerprint=str(tokens),
            ),
            lambda done, total, note: print(f"{tokens:,} tokens: {done}/{total} {note}", flush=True),
        )
        layers = [round(each["stream_error"], 4) for each in record["layers"]]
        kept = ("tokens", "documents", "products", "cpu_seconds", "seconds")
        row |= {name: record[name] for name in kept} | {"stream_error_by_layer": layers}
        row["more_damping"] = sum(each["damping"] != 0.01 for each in record["layers"])
        student = calibrated_student(student, folder / "start")
    heldout = KDTraceDataset(run / "data", split="heldout", max_seq_len=MAX_SEQ_LEN, tokenizer_folder=teacher_folder())
    model = build_student(student, None, heldout.vocab_size, seed=SEED).eval()
    found = summary(score_documents(model, heldout, BATCH, "auto"))
    row |= {name: found[name] for name in ("kl", "top1_agreement", "perplexity", "teacher_perplexity", "documents")}
    print(json.dumps(row), flush=True)
    return row


def teacher_folder() -> Path:
    """The quickstart's teacher as a model folder, converted if need be."""
    return model_folder("smollm2-135m-instruct")


if __name__ == "__main__":
    main()
