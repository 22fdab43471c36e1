"""Which loss, which quantiser, which start? One teacher, equal tokens, three seeds each.

    uv run python -m benchmarks.recipes [--size calibrated] [--work FOLDER] [--only NAME ...] [--seeds 0 1 2]

SmolLM2-135M-Instruct scores the quickstart's texts (`bitnet run ... --stages storage,collect,project`, twice: with
top-K targets and with draws). Students are then trained by the library's own loop, all on the same number of the same
documents; a seed is an order of the documents. Every recipe differs from `base` in one thing. Measured is
KL(teacher ‖ student) over the whole vocabulary, in nats a token, and the student's perplexity over the teacher's: on
test documents, and on validation documents (`validation_kl_a8`), which are what a choice may look at.

--size calibrated: all thirty layers from one calibrated start, 80 steps. --size finalists: the best of them, 320 steps.
--size cpu: three layers, started by least squares, and few steps: far from the teacher, and the only one that compares
quantisers. --size gpu: all thirty layers, started by least squares, many more tokens.
Finished trainings stay in WORK and are not repeated, so a run goes on where it stopped and `--only` adds to what is
there. A loss plugin of bitnet-core takes part without a word here. Prints one JSON object last, over all that WORK
holds for the size.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import attrs
import torch
from transformers import PreTrainedModel

from benchmarks.full_kl import TeacherStates, distance, teacher_states
from benchmarks.kd_loss import cpu_name
from benchmarks.peer_losses import PEER_LOSSES, Loss
from bitnet_core.calibration.calibrate import START, Calibration, calibrate
from bitnet_core.config.calibration import CalibrationConfig
from bitnet_core.config.student import StudentConfig
from bitnet_core.config.train import RANDOM_START, TERNARY_START, TrainConfig
from bitnet_core.hardware import best_device
from bitnet_core.model.choose_checkpoint import checkpoints
from bitnet_core.model.read_checkpoint import load_model
from bitnet_core.plugin import bitnet_losses
from bitnet_core.traces.dataset import KDTraceDataset
from bitnet_core.training.loop import train
from bitnet_core.training.setup import Job
from bitnet_providers.teachers.local.model_source import model_folder

BITNET = str(Path(sys.executable).with_name("bitnet"))
MANIFEST = "manifests/quickstart.toml"
TEACHER = "smollm2-135m-instruct"
FIGURES = ("kl_a8", "validation_kl_a8", "kl_a4", "perplexity_ratio_a8")
MEASURED_DOCUMENTS = 64
"""The first of the test documents, and of the validation documents."""
TAU = 2.0
"""Where a recipe is about temperature; 1 elsewhere."""


@attrs.frozen
class Size:
    """How large the comparison is."""

    collect: tuple[str, ...]
    student: Mapping[str, Any]
    train: Mapping[str, Any]
    calibration: CalibrationConfig | None = None
    """How the start is calibrated; None: it is by least squares."""
    only: tuple[str, ...] = ()
    """Recipes; empty: all."""


SIZES = {
    "calibrated": Size(
        collect=(),
        student={"freeze_embeddings": True},
        train={"steps": 80, "batch_size": 4, "warmup_steps": 5},
        calibration=CalibrationConfig(tokens=20_000),
    ),
    "finalists": Size(
        collect=(),
        student={"freeze_embeddings": True},
        train={"steps": 320, "batch_size": 4, "warmup_steps": 5},
        calibration=CalibrationConfig(tokens=20_000),
        only=("base", "averaged", "sampled"),
    ),
    "cpu": Size(
        collect=("collect.max_prompts=8", "collect.max_new_tokens=8", "collect.max_texts=256",
                 "collect.max_text_tokens=96"),
        student={"layers": (0, 1, 29), "freeze_embeddings": True},
        train={"steps": 48, "batch_size": 6, "learning_rate": 2e-3, "scale_learning_rate": 1e-2, "warmup_steps": 5},
    ),
    "gpu": Size(
        collect=("collect.samples_per_prompt=32", "collect.max_new_tokens=256"),
        student={"freeze_embeddings": True},
        train={"steps": 1500, "batch_size": 32, "learning_rate": 2e-3, "scale_learning_rate": 1e-2, "warmup_steps": 50},
    ),
}  # fmt: skip


@attrs.frozen
class Recipe:
    """What a student differs in from `base`."""

    name: str
    group: str
    loss: str = "topk_other"
    tau: float | None = None
    ce_weight: float = 0.0
    student: Mapping[str, Any] = {}
    train: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda settings: {}
    averaged: int = 1
    """The student is the mean of this many checkpoints, the last ones"""

    @property
    def targets(self) -> str:
        return "sampled" if self.loss == "sampled" else "tempered"

    def fits(self, size: Size) -> bool:
        """A calibrated start is made for one student: what differs in the student has no place there."""
        if size.only and self.name not in size.only:
            return False
        if self.group == "after_calibration":
            return size.calibration is not None
        return size.calibration is None or not (self.student or self.group == "start")

    @property
    def bits(self) -> tuple[int, ...]:
        """Of the activations that it is measured at."""
        return (8, 4) if self.group in ("base", "activations", "quantisers") else (8,)


def recipes() -> list[Recipe]:
    """`base` stands for topk_other at temperature 1, LSQ, A8, ternary from the start (of the training)."""
    plugins = [plugin.name for plugin in bitnet_losses() if plugin.name not in ("topk_other", "tempered")]
    return [
        Recipe("base", "base"),
        *(Recipe(name, "losses", loss=name) for name in (*PEER_LOSSES, *plugins)),
        Recipe("topk_other_tau2", "losses", tau=TAU),
        Recipe("tempered_tau2", "losses", loss="tempered", tau=TAU),
        Recipe("topk_other_with_ce", "losses", ce_weight=0.1),
        *(
            Recipe(name, "quantisers", student={"weight_quantiser": name})
            for name in ("absmean_tensor", "absmean_row", "lsq_clip", "seq")
        ),
        Recipe("full_precision", "quantisers", student={"quantise_weights": False}),
        Recipe("flip_to_a4", "activations", train=lambda _: {"flip_fraction": 0.8}),
        Recipe("ternary_warmup", "start", train=lambda given: {"ternary_warmup_steps": given["steps"] // 2}),
        Recipe(
            "scales_only", "after_calibration", train=lambda _: {"learning_rate": 1e-12, "scale_learning_rate": 1e-3}
        ),
        Recipe(
            "averaged",
            "after_calibration",
            train=lambda _: {"schedule": "wsd", "decay_fraction": 0.01, "checkpoint_every": 5, "keep_checkpoints": 4},
            averaged=4,
        ),
        Recipe("quarter", "learning_rate", train=lambda given: rates(given, 1 / 4)),
        Recipe("half", "learning_rate", train=lambda given: rates(given, 1 / 2)),
        Recipe("double", "learning_rate", train=lambda given: rates(given, 2)),
    ]


def rates(given: Mapping[str, Any], factor: float) -> dict[str, float]:
    """All learning rates by a factor."""
    return {name: given[name] * factor for name in ("learning_rate", "scale_learning_rate")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="calibrated")
    parser.add_argument("--work", type=Path, help="a folder for traces and finished trainings, which stays")
    parser.add_argument("--only", nargs="+", help="recipes by name")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        size = SIZES[options.size]
        journal = work / f"runs_{options.size}_{fingerprint(size)}.jsonl"
        measured: Mapping[str, TeacherStates] = {}
        for recipe in recipes():
            if not recipe.fits(size) or (options.only and recipe.name not in options.only):
                continue
            for seed in options.seeds:
                if (recipe.name, seed) in {(run["recipe"], run["seed"]) for run in finished(journal)}:
                    continue
                data = {target: traces(work, target, size) for target in {recipe.targets, "tempered"}}
                measured = measured or {split: asked(data["tempered"], split, size) for split in ("test", "heldout")}
                run = train_one(recipe, seed, size, data[recipe.targets], work, measured)
                with journal.open("a") as file:
                    file.write(json.dumps(run) + "\n")
                print(json.dumps(run), flush=True)
        print(json.dumps(summary(options.size, size, finished(journal)), indent=1))


def fingerprint(settings: object) -> str:
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:8]


def finished(journal: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []


def traces(work: Path, target: str, size: Size) -> Path:
    """The folder of the KD traces; `bitnet` itself skips what is there."""
    name = f"{target}_{fingerprint(size.collect)}"
    if not (work / name / "stages/project/done.json").exists():
        settings = (f'store.root="{work}"', f'run.name="{name}"', f'collect.targets="{target}"',
                    f'loss.kind="{target}"', f"collect.log_z_tau={TAU}", *size.collect)  # fmt: skip
        stages = ("--stages", "storage,collect,project", "--yes")
        flags = [flag for setting in settings for flag in ("--set", setting)]
        subprocess.run([BITNET, "run", MANIFEST, *stages, *flags], check=True, stdout=sys.stderr)
    return work / name / "data"


def asked(data: Path, split: str, size: Size) -> TeacherStates:
    documents = KDTraceDataset(data, split=split, max_seq_len=train_settings(size).max_seq_len)
    return teacher_states(model_folder(TEACHER), documents, 8, best_device(), MEASURED_DOCUMENTS)


def train_settings(size: Size, recipe: Recipe | None = None) -> TrainConfig:
    """No flip, no validation on the way, one checkpoint, but for what the recipe says."""
    settings = {"flip_fraction": 1.0, "validate_every": 0, "validation_documents": 1, **size.train}
    settings |= {"checkpoint_every": settings["steps"], "keep_checkpoints": 1}
    kind = RANDOM_START if size.calibration is None else TERNARY_START  # without a ternary warm-up
    settings = attrs.asdict(TrainConfig(**settings).begun_from(kind))
    return TrainConfig(**settings | (dict(recipe.train(settings)) if recipe else {}))


def calibrated_start(work: Path, data: Path, size: Size) -> Path | None:
    """The start that all students of the size have; made once."""
    if size.calibration is None:
        return None
    teacher, made_for = model_folder(TEACHER), fingerprint((size.collect, size.student, size.calibration))
    job = Calibration(
        data_folder=data,
        tokenizer_folder=teacher,
        checkpoint=teacher,
        folder=work / f"calibrated_{made_for}",
        student=StudentConfig(**size.student),
        config=size.calibration,
        max_seq_len=train_settings(size).max_seq_len,
        precision=train_settings(size).precision,
        seed=0,
        fingerprint=made_for,
    )
    calibrate(job, lambda *_: None)
    return job.folder / START


def make_loss(recipe: Recipe) -> Loss:
    if recipe.loss in PEER_LOSSES:
        return PEER_LOSSES[recipe.loss]
    plugin = next(plugin for plugin in bitnet_losses() if plugin.name == recipe.loss)
    options = {"ce_weight": recipe.ce_weight, "format_weight": 0.0}
    loss: Loss = plugin.load(plugin.options(**options | ({} if recipe.tau is None else {"tau": recipe.tau})))
    return loss


def train_one(
    recipe: Recipe, seed: int, size: Size, data: Path, work: Path, measured: Mapping[str, TeacherStates]
) -> dict[str, Any]:
    """One training and what its student is: as trained for A8 and, where its activations are in question, at A4."""
    folder = work / f"training_{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    teacher = model_folder(TEACHER)
    start = time.perf_counter(), time.process_time()
    job = Job(
        data_folder=data,
        tokenizer_folder=teacher,
        teacher_folder=teacher,
        calibrated_start=calibrated_start(work, data, size),
        student=StudentConfig(**{**size.student, **recipe.student}),
        loss=make_loss(recipe),
        train=train_settings(size, recipe),
        seed=seed,
        checkpoint_folder=folder / "checkpoints",
        metrics_file=folder / "metrics.jsonl",
        fingerprint=recipe.name,
    )
    done = train(job, lambda *_: None)
    seconds, cpu_seconds = time.perf_counter() - start[0], time.process_time() - start[1]
    model = mean_model(checkpoints(folder / "checkpoints")[-recipe.averaged :])
    at = {bits: distance(model, measured["test"], bits) for bits in recipe.bits}
    validation = distance(model, measured["heldout"], 8)
    shutil.rmtree(folder)
    return {
        "recipe": recipe.name,
        "seed": seed,
        "validation_kl_a8": validation.kl,
        "perplexity_ratio_a8": at[8].perplexity_ratio,
        **{f"kl_a{bits}": distance.kl for bits, distance in at.items()},
        "tokens": done["seen_tokens"],
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
    }


def mean_model(found: Sequence[Path]) -> PreTrainedModel:
    """The student whose master weights and log scales are the mean of the checkpoints'."""
    model, *others = [load_model(checkpoint) for checkpoint in found]
    with torch.no_grad():
        for parameter, *same in zip(*(each.parameters() for each in (model, *others)), strict=True):
            parameter.copy_(torch.stack([parameter, *same]).mean(0))
    return model


def summary(name: str, size: Size, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Per group and recipe: the mean over the seeds, its range, and what each seed gave."""
    found: dict[str, dict[str, Any]] = {}
    for recipe in recipes():
        own = [run for run in runs if run["recipe"] == recipe.name]
        if own:
            figures = {name: spread([run[name] for run in own]) for name in FIGURES if name in own[0]}
            found.setdefault(recipe.group, {})[recipe.name] = figures
    return {
        "size": name,
        "recipes": found,
        "tokens_each": sorted({run["tokens"] for run in runs}),
        "trainings": len(runs),
        "seconds": sum(run["seconds"] for run in runs),
        "cpu_seconds_each": spread([run["cpu_seconds"] for run in runs]),
        "settings": attrs.asdict(size),
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "versions": {
            "python": platform.python_version(),
            **{each: version(each) for each in ("torch", "transformers", "bitnet-core")},
        },
    }


def spread(values: list[float]) -> dict[str, Any]:
    return {"mean": statistics.mean(values), "range": [min(values), max(values)], "seeds": len(values)}


if __name__ == "__main__":
    main()
