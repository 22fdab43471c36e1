"""Reading a checkpoint: its model and its counters, without the optimizer. Written by
`bitnet_core.training.save_and_resume`.

``training.json`` is a `TrainingState` with ``version``, ``layout`` ("one": the weights lie whole in one folder;
"sharded": in the parts that several processes wrote, which `bitnet_core.training.sharded_checkpoint` reads), ``files``,
the sha256 of every other file in the folder, and ``sha256``, that of the rest of the record itself. Version 1, which
had neither these nor ``scaler`` and ``start``, is read too.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel

from bitnet_core.errors import CoreError
from bitnet_core.files import has_its_digest, sha256_of
from bitnet_core.model.modeling import BitNetKDEForCausalLM, has_own_head
from bitnet_core.model.progress_bars import no_progress_bars
from bitnet_core.weight_format import check_sizes, is_student


def model_type(folder: Path) -> str:
    """``model_type`` of the folder's config.json. Raises CoreError where it can't be read."""
    return str(_config(folder)["model_type"])


def holds_student(folder: Path) -> bool:
    """Whether the folder's config.json is a student's of this project. Raises CoreError where it can't be read."""
    return is_student(_config(folder))


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        str(config["model_type"])
        return config
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CoreError(f"{file}: can't be read ({error!r}), so the model is damaged", "name another one") from error


FORMAT_VERSION = 2
READABLE = (1, 2)
LAYOUT, SHARDED = "one", "sharded"
RECORD = "training.json"
WEIGHTS = "model.safetensors"
OPTIMIZER = "training.safetensors"
"""What only a training that goes on needs; it may be deleted to save space."""


@attrs.frozen
class TrainingState:
    """The counters of a run; everything else follows from them and the settings."""

    step: int
    """Optimizer steps done."""
    batches: int
    """Batches read, over all epochs."""
    seen_tokens: int
    """Tokens seen, padding not counted."""
    bits: int
    """Activation bits of the last step."""
    fingerprint: str
    """Names everything that shapes the training; another one means another training."""
    projection: str | None = None
    """The id of the projection that made the traces; None where they don't say."""
    last: Mapping[str, Any] = attrs.field(factory=dict)
    """The last step's row of metrics."""
    scaler: Mapping[str, Any] | None = None
    """``GradScaler.state_dict()``; None where gradients are not scaled."""
    plan: Mapping[str, Any] | None = None
    """How far the training was to go: ``steps``, ``budget_tokens``, and ``lineage``, which names everything else that
    shapes it. One of the same lineage that is to go further goes on from here."""
    start: Mapping[str, str] | None = None
    """How the first weights came about: ``kind`` ("random", "checkpoint", "calibrated") and ``digest``, that of the
    weights before the first step."""


def damaged(file: Path, error: object) -> CoreError:
    return CoreError(f"{file}: not a complete checkpoint ({error})", f"delete the folder {file.parent} and run again")


def check_file(checkpoint: Path, name: str, digest: str) -> None:
    """Raises CoreError where the file is not the one that was written."""
    file = checkpoint / name
    try:
        found = sha256_of(file)
    except OSError as error:
        raise damaged(file, error) from error
    if found != digest:
        raise CoreError(
            f"{file}: not a complete checkpoint (the file has changed since it was written: its sha256 is {found[:12]}"
            f", {RECORD} says {digest[:12]})",
            f"put the file back as it was, or delete the folder {checkpoint} and run again",
        )


@no_progress_bars()
def load_model(checkpoint: Path) -> PreTrainedModel:
    """The student of `checkpoint`, of any architecture.

    CoreError where its files, the tokenizer's too, are not as they were written.
    """
    if has_record(checkpoint) and read_record(checkpoint).get("layout", LAYOUT) == SHARDED:
        raise CoreError(
            f"{checkpoint}: the processes of a training have written it in parts",
            f"make one folder of it: bitnet checkpoint {checkpoint}",
        )
    for name, digest in file_digests(checkpoint).items():
        if name != OPTIMIZER:
            check_file(checkpoint, name, digest)
    check_sizes(checkpoint)
    own = (checkpoint / "config.json").is_file() and model_type(checkpoint) != "bitnet_kde"
    kind: Any = AutoModelForCausalLM if own and holds_student(checkpoint) else BitNetKDEForCausalLM
    try:
        found: Any = kind.from_pretrained(checkpoint, output_loading_info=True, trust_remote_code=False)
    except SafetensorError as error:
        raise damaged(checkpoint / WEIGHTS, error) from error
    except Exception as error:  # transformers checks a config with a library whose errors are plain Exceptions
        weights = checkpoint / WEIGHTS
        raise damaged(weights if not weights.is_file() else checkpoint / "config.json", error) from error
    model, report = found
    # transformers fills what it doesn't find with random numbers.
    if report["missing_keys"] or report["unexpected_keys"]:
        names = sorted({*report["missing_keys"], *report["unexpected_keys"]})
        raise damaged(checkpoint / WEIGHTS, f"other tensors than the model's: {names[0]}, ...")
    loaded: PreTrainedModel = model
    if not isinstance(loaded, BitNetKDEForCausalLM):
        return loaded
    if loaded.config.tie_word_embeddings and has_own_head(loaded.lm_head.weight, loaded.model.embed_tokens.weight):
        loaded.config.tie_word_embeddings = False  # else exports would leave the head out
    return loaded


def read_state(checkpoint: Path) -> TrainingState:
    """The counters of one checkpoint; CoreError if it was written by another version or is damaged."""
    record = read_record(checkpoint)
    counters = {name: value for name, value in record.items() if name not in ("version", "layout", "files", "sha256")}
    try:
        return TrainingState(**counters)
    except TypeError as error:
        raise damaged(checkpoint / RECORD, error) from error


def file_digests(checkpoint: Path) -> dict[str, str]:
    """File within the folder → sha256, as they were written; empty for a folder that no training wrote.

    Raises CoreError, as `read_state`.
    """
    if not has_record(checkpoint):
        return {}
    files = read_record(checkpoint).get("files", {})
    if not isinstance(files, dict) or not all(isinstance(digest, str) for digest in files.values()):
        raise damaged(checkpoint / RECORD, "files are no digests")
    return files


def has_record(checkpoint: Path) -> bool:
    """Whether a training has written the folder."""
    return (checkpoint / RECORD).exists()


def read_record(checkpoint: Path) -> dict[str, Any]:
    """What ``training.json`` holds. Raises CoreError as `read_state`."""
    try:
        record: dict[str, Any] = json.loads((checkpoint / RECORD).read_text())
        version, layout = record["version"], record.get("layout", LAYOUT)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(checkpoint / RECORD, error) from error
    if version not in READABLE or layout not in (LAYOUT, SHARDED):
        form = f"format {version}" + (f", layout {layout!r}" if layout != LAYOUT else "")
        raise CoreError(
            f"{checkpoint}: checkpoint {form}, this version reads {' and '.join(map(str, READABLE))}, whole or sharded",
            "train again with `--from train`, or use the version that wrote it",
        )
    if version > 1 and not has_its_digest(record):
        raise damaged(checkpoint / RECORD, "it has changed since it was written")
    return record
