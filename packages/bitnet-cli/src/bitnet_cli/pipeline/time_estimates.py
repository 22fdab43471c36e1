"""How long the stages of a run will take on this machine, by how fast its teacher was measured to answer here.

The baseline stage times the teacher's greedy answers, one at a time. What everything else costs beside that was
measured once: benchmarks/results/quickstart.json and cpu_hour.json (two cores, SmolLM2-135M). Such an estimate is good
for "minutes or hours", not for more.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from bitnet_cli import run_folder
from bitnet_cli.environment import cpu_name
from bitnet_cli.stages.tokenizer_and_start import why_not_calibrated

if TYPE_CHECKING:
    from bitnet_cli.manifest import Manifest
    from bitnet_providers.prompts.collection_inputs import Inputs

SAMPLED, SCORED, CALIBRATED, TRAINED = 4.0, 40.0, 8.0, 4.2
"""Tokens of each kind in the time of one greedy token of the teacher; the last two of a student with all its layers."""
EVALUATED, DOCUMENTS = 5000, 71
"""Greedy tokens in the time of an evaluation of such a student on so many documents, which are about the most."""
FIXED_SECONDS = 20.0
"""Loading, projection, export, report."""
BYTES_A_TOKEN = 4


@attrs.frozen
class Measured:
    """A teacher's speed on this machine."""

    tokens_per_second: float
    run: str
    """The run whose baseline timed it."""
    model_folder: str | None = None


def measured_speed(manifest: "Manifest", folder: Path | None) -> Measured | None:
    """By this run's baseline, else by the newest of a run beside it with the same teacher and processor."""
    if folder is None or manifest.teacher is None:
        return None
    beside = sorted(folder.parent.glob(f"*/{run_folder.BASELINE}"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in (folder / run_folder.BASELINE, *beside):
        found, run = run_folder.read_json(file), file.parents[1]
        machine = run_folder.read_json(run / "environment.json")
        if not isinstance(found, dict) or not isinstance(machine, dict) or machine.get("cpu") != cpu_name():
            continue
        speed, teacher = found.get("tokens_per_second"), found.get("teacher") or {}
        if isinstance(speed, int | float) and speed > 0 and _is_teacher(manifest, teacher):
            return Measured(float(speed), run.name, teacher.get("model_folder"))
    return None


def _is_teacher(manifest: "Manifest", described: Mapping[str, Any]) -> bool:
    """Its name in reports is the end of the manifest's, without a revision."""
    assert manifest.teacher is not None
    model = str(getattr(manifest.teacher.options, "model", "")).partition("@")[0].removesuffix(".gguf")
    return bool(model) and Path(model).name == described.get("model")


def expected_seconds(manifest: "Manifest", inputs: "Inputs | None", speed: Measured) -> dict[str, float]:
    """Stage → seconds, about; of a teacher on this machine and what the manifest has a section for."""
    greedy = speed.tokens_per_second
    share = student_share(manifest, speed)
    seconds: dict[str, float] = {}
    if manifest.baseline is not None:
        seconds["baseline"] = manifest.baseline.max_prompts * manifest.baseline.max_new_tokens / greedy
    if inputs is not None and manifest.collect is not None:
        config = manifest.collect
        sampled = len(inputs.prompts) * config.samples_per_prompt * config.max_new_tokens
        scored = sum(min(len(text.text.encode()) / BYTES_A_TOKEN, config.max_text_tokens) for text in inputs.texts)
        seconds["collect"] = (sampled / SAMPLED + scored / SCORED) / greedy
    if manifest.calibration is not None and why_not_calibrated(manifest) is None:
        seconds["calibrate"] = manifest.calibration.tokens / CALIBRATED / greedy * share
    if manifest.train is not None:
        train = manifest.train
        tokens = train.steps * train.accumulation * train.batch_size * mean_tokens(manifest, inputs)
        seconds["train"] = min(tokens, train.budget_tokens or tokens) / TRAINED / greedy * share
    if manifest.evaluate is not None:
        seconds["evaluate"] = EVALUATED * _evaluated_part(manifest, inputs) / greedy * share
    return seconds


def _evaluated_part(manifest: "Manifest", inputs: "Inputs | None") -> float:
    """Held-out documents, of `DOCUMENTS`; a fifth of the time is spent on none of them."""
    if inputs is None or manifest.collect is None or manifest.project is None:
        return 1.0
    documents = len(inputs.prompts) * manifest.collect.samples_per_prompt + len(inputs.texts)
    return min(1.0, max(0.2, documents * manifest.project.holdout_fraction / DOCUMENTS))


def mean_tokens(manifest: "Manifest", inputs: "Inputs | None") -> float:
    """Tokens of a training document, about: a conversation with its answer."""
    longest = manifest.train.max_seq_len if manifest.train is not None else 512
    if inputs is None or manifest.collect is None:
        return longest
    most = manifest.collect.max_new_tokens
    lengths = [sum(len(turn["content"]) for turn in each.messages) / BYTES_A_TOKEN + most for each in inputs.prompts]
    lengths += [
        (sum(len(turn["content"]) for turn in each.messages) + len(each.text)) / BYTES_A_TOKEN for each in inputs.texts
    ]
    return sum(min(each, longest) for each in lengths) / len(lengths) if lengths else longest


def student_share(manifest: "Manifest", speed: Measured) -> float:
    """The student's layers as a share of the teacher's, where it is made of them; else 1."""
    student = manifest.student
    if student is None or not student.layers or speed.model_folder is None:
        return 1.0
    try:
        config = json.loads((Path(speed.model_folder) / "config.json").read_text(encoding="utf-8"))
        return min(1.0, len(student.layers) / int(config["num_hidden_layers"]))
    except (OSError, ValueError, KeyError, TypeError):
        return 1.0


def shown_time(seconds: float) -> str:
    """``about 40 seconds``, ``about 12 minutes``, ``about 3.5 hours``, ``about 12 days``"""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    if seconds < 5400:
        return f"about {seconds / 60:.0f} minutes"
    return f"about {seconds / 3600:.1f} hours" if seconds < 72 * 3600 else f"about {seconds / 86400:,.0f} days"


@attrs.frozen
class Fit:
    """What fits into a time."""

    max_prompts: int | None
    """None: all of them."""
    steps: int
    budget_tokens: int


FEWEST_STEPS = 20
COLLECTION_SHARE = 0.4


def fit_into(minutes: float, manifest: "Manifest", inputs: "Inputs", speed: Measured) -> Fit | None:
    """As many prompts and steps as fit; None: fewer than `FEWEST_STEPS` would.

    The collection gets four tenths of the time at most; training what the other stages leave.
    """
    assert manifest.train is not None
    expected = expected_seconds(manifest, inputs, speed)
    whole = minutes * 60
    collect, limit = expected.get("collect", 0.0), None
    if collect > COLLECTION_SHARE * whole and inputs.prompts:
        limit = max(1, int(len(inputs.prompts) * COLLECTION_SHARE * whole / collect))
        collect *= limit / len(inputs.prompts)
    others = sum(value for stage, value in expected.items() if stage not in ("collect", "train"))
    left = whole - collect - others - FIXED_SECONDS
    tokens = left * TRAINED * speed.tokens_per_second / student_share(manifest, speed)
    steps = int(tokens / (manifest.train.batch_size * mean_tokens(manifest, inputs)))
    return Fit(limit, steps, int(tokens)) if steps >= FEWEST_STEPS else None
