"""What a calibrated start is worth before any training, and what it costs: `python -m benchmarks.calibration`.

The quickstart's traces and teacher, all of its layers: KL of the untrained student on validation documents by least
squares, and calibrated on 10,000, 20,000 and 50,000 tokens; CPU seconds of the calibration. Then what each constant of
the algorithm is worth, at the fewest tokens, and a smaller ridge at all of them (`--no-constants` leaves that out). One
thread. `--data` names a run folder that has traces; without it the quickstart's stages up to project run into a folder
of their own.
"""

import argparse
import json
import platform
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from bitnet_cli.environment import cpu_name
from bitnet_core.calibration import moments, solve
from bitnet_core.calibration.calibrate import START, Calibration, calibrate
from bitnet_core.calibration.solve import DAMPING
from bitnet_core.config.calibration import CalibrationConfig, calibrated_student
from bitnet_core.config.student import StudentConfig
from bitnet_core.evaluation.heldout import score_documents, summary
from bitnet_core.model.init_from import build_student
from bitnet_core.traces.dataset import KDTraceDataset
from bitnet_providers.teachers.local.model_source import model_folder

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "calibration.json"
MAX_SEQ_LEN, BATCH, SEED = 512, 8, 0
NO_CAP = 1e30
SMALLER_RIDGE = {"RIDGE": 0.05}
CONSTANTS: tuple[dict[str, float], ...] = (
    {"INPUT_CAP": NO_CAP, "GAP_CAP": NO_CAP},
    {"RIDGE": 0.1},
    {"RIDGE": 0.4},
    {"ROUNDS": 1},
)
"""What is tried in place of the usual values, one after the other, at the fewest tokens."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a run folder with traces of the quickstart")
    parser.add_argument("--tokens", type=int, nargs="*", default=[10_000, 20_000, 50_000])
    parser.add_argument("--no-constants", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        run = arguments.data or make_traces(Path(work))
        rows = [measured(run, Path(work), tokens) for tokens in (None, *arguments.tokens)]
        constants = (
            []
            if arguments.no_constants
            else [measured(run, Path(work), tokens, **each) for tokens, each in other_constants(arguments.tokens)]
        )
    record = {
        "machine": cpu_name(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": 1,
        "starts": rows,
        "constants": constants,
    }
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")


def other_constants(tokens: Sequence[int]) -> list[tuple[int, dict[str, float]]]:
    return [(min(tokens), each) for each in CONSTANTS] + [(each, SMALLER_RIDGE) for each in tokens]


def make_traces(folder: Path) -> Path:
    command = ["bitnet", "run", str(ROOT / "manifests" / "quickstart.toml"), "--stages", "storage,collect,project"]
    subprocess.run([*command, "--set", f'store.root="{folder}"'], check=True)
    return folder / "quickstart"


def measured(run: Path, work: Path, tokens: int | None, **constants: float) -> dict[str, Any]:
    """Validation figures of one untrained student; tokens None: started by least squares. constants: not the usual."""
    student = StudentConfig(init_from=str(teacher_folder()))
    row: dict[str, Any] = {"start": "least_squares" if tokens is None else "calibrated", **constants}
    if tokens is not None:
        folder = work / "_".join(["calibrated", str(tokens), *map(str, constants.values())])
        with usual_but(constants):
            record = calibrated(run, folder, student, tokens)
        layers = [round(each["stream_error"], 4) for each in record["layers"]]
        kept = ("tokens", "documents", "products", "cpu_seconds", "seconds")
        row |= {name: record[name] for name in kept} | {"stream_error_by_layer": layers}
        row["more_damping"] = sum(each["damping"] != DAMPING for each in record["layers"])
        student = calibrated_student(student, folder / START)
    heldout = KDTraceDataset(run / "data", split="heldout", max_seq_len=MAX_SEQ_LEN, tokenizer_folder=teacher_folder())
    model = build_student(student, None, heldout.vocab_size, seed=SEED).eval()
    found = summary(score_documents(model, heldout, BATCH, "auto"))
    row |= {name: found[name] for name in ("kl", "top1_agreement", "perplexity", "teacher_perplexity", "documents")}
    print(json.dumps(row), flush=True)
    return row


def calibrated(run: Path, folder: Path, student: StudentConfig, tokens: int) -> dict[str, Any]:
    """The record of the calibration into `folder`."""
    job = Calibration(
        data_folder=run / "data",
        tokenizer_folder=teacher_folder(),
        checkpoint=teacher_folder(),
        folder=folder,
        student=student,
        config=CalibrationConfig(tokens=tokens),
        max_seq_len=MAX_SEQ_LEN,
        precision="auto",
        seed=SEED,
        fingerprint=folder.name,
    )
    return calibrate(job, lambda done, total, note: print(f"{tokens:,} tokens: {done}/{total} {note}", flush=True))


@contextmanager
def usual_but(constants: Mapping[str, float]) -> Iterator[None]:
    """The algorithm with other constants."""
    with ExitStack() as stack:
        for name, value in constants.items():
            stack.enter_context(mock.patch.object(solve if hasattr(solve, name) else moments, name, value))
        yield


def teacher_folder() -> Path:
    """The quickstart's teacher as a model folder, converted if need be."""
    return model_folder("smollm2-135m-instruct")


if __name__ == "__main__":
    main()
