"""The calibration, top to bottom: training documents in, a ternary start checkpoint out.

Two streams run through the layers together: the checkpoint's own, unquantised, and the student's, whose layers so far
are ternary and whose activations are quantised. Each group of linears is fitted to put out, from the student's input,
what the checkpoint's puts out from its own, so that a layer corrects what the ones before got wrong.

After each layer its weights and both streams are on the disk: a calibration that was stopped goes on, and writes the
same bytes. docs/calibrated-start.md has the mathematics.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors.torch import save_file
from torch import Tensor

from bitnet_core.calibration.documents import choose_batches
from bitnet_core.calibration.fit_group import fit_group
from bitnet_core.calibration.found_groups import found_groups
from bitnet_core.calibration.llama_groups import LLAMA
from bitnet_core.calibration.streams import open_stream, relative_error, sync, write_first_streams
from bitnet_core.calibration.work import MODELS, Work
from bitnet_core.config.calibration import CalibrationConfig
from bitnet_core.config.student import LLAMA as LLAMA_ARCHITECTURE
from bitnet_core.config.student import StudentConfig, calibration_obstacle
from bitnet_core.errors import CoreError
from bitnet_core.files import atomic_file, write_json
from bitnet_core.hardware import autocast, autocast_dtype, best_device
from bitnet_core.model.init_from import check_vocabulary
from bitnet_core.model.start_layer_by_layer import LayeredStart, open_start, write_index
from bitnet_core.model.start_whole_model import WholeStart, open_whole_start
from bitnet_core.ternary.bitlinear import quantised_once
from bitnet_core.traces.dataset import KDTraceDataset
from bitnet_core.traces.tokenizer_files import copy_tokenizer
from bitnet_core.weight_format import is_ternary

OnProgress = Callable[[int, int, str], None]
START, WORK = "start", ".work"
"""In the calibration's folder: the finished checkpoint; streams and layers while they are made."""
RECORD = "calibration.json"
"""In START the whole record; in WORK what has been done so far."""
FORMAT_VERSION = 2


@attrs.frozen(kw_only=True)
class Calibration:
    """What is calibrated, on what, and where it goes."""

    data_folder: Path
    """KD traces."""
    tokenizer_folder: Path
    """The student's tokenizer."""
    checkpoint: Path
    """The full-precision model that the student starts from; its own outputs are what the student is fitted to."""
    folder: Path
    """Gets ``start/``, the checkpoint that the student then starts from."""
    student: StudentConfig
    config: CalibrationConfig
    max_seq_len: int
    """Positions kept of a document."""
    precision: str
    """That of the training; fp16, whose range is too small for what is summed here, counts as fp32."""
    seed: int
    fingerprint: str
    """Names everything that shapes the result. What was begun with another one is begun anew."""


@torch.no_grad()
def calibrate(job: Calibration, on_progress: OnProgress) -> dict[str, Any]:
    """Write ``job.folder/start`` and return its record; nothing is done again that lies there with this fingerprint.

    The record: ``layers`` with the stream's relative error after each, ``tokens``, ``documents``, ``seconds``,
    ``cpu_seconds`` (both over all attempts), and by what it was made. Raises CoreError where there is nothing to
    calibrate, a checkpoint that can't be read, or no room on the disk.
    """
    finished = _read(job.folder / START / RECORD, job.fingerprint)
    if finished is not None:
        return finished
    work = open_work(job)
    record = _read(work.folder / RECORD, job.fingerprint)
    if record is None:
        record = begin(work, job)
    count = work.start.layers
    for index in range(len(record["layers"]), count):
        told = record["layers"][-1] if record["layers"] else None
        note = f"layer {index}" + (f"; stream's relative error {told['stream_error']:.3f}" if told else "")
        on_progress(index, count, note)
        clock, cpu_clock = time.perf_counter(), time.process_time()
        result = calibrate_layer(work, index)
        record["layers"].append(result)
        record["seconds"] += time.perf_counter() - clock
        record["cpu_seconds"] += time.process_time() - cpu_clock
        write_json(work.folder / RECORD, record)  # from here on the layer counts as done
        shutil.rmtree(work.before(index))
    return finish(work, job, record)


def open_work(job: Calibration) -> Work:
    """Read what the calibration works with. Raises CoreError where it can't be calibrated, each with its fix."""
    obstacle = calibration_obstacle(job.student)
    if obstacle is None and is_ternary(job.checkpoint):
        obstacle = f"{job.checkpoint} is ternary already: it keeps its codes and scales"
    if obstacle is not None:
        raise CoreError(f"this start can't be calibrated: {obstacle}", 'set student.start = "least_squares"')
    device = best_device()
    start: LayeredStart | WholeStart = (
        open_start(job.checkpoint, job.student)
        if job.student.architecture == LLAMA_ARCHITECTURE
        else open_whole_start(job.checkpoint, job.student, device)
    )
    traces = KDTraceDataset(
        job.data_folder, split="train", max_seq_len=job.max_seq_len, tokenizer_folder=job.tokenizer_folder
    )
    check_vocabulary(start.vocab_size, traces.vocab_size)
    is_fp16 = job.precision == "fp16" or autocast_dtype(job.precision, device) is torch.float16
    precision = "fp32" if is_fp16 else job.precision
    return Work(
        start=start,
        batches=choose_batches(traces, job.config.tokens, job.seed),
        folder=job.folder / WORK,
        device=device,
        dtype=autocast_dtype(precision, device),
        precision=precision,
    )


def begin(work: Work, job: Calibration) -> dict[str, Any]:
    """Clear the work folder, and write both streams as the embedding makes them."""
    shutil.rmtree(work.folder, ignore_errors=True)
    work.folder.mkdir(parents=True)
    check_disk(work)
    outside = work.start.outside_layers()
    save_tensors(work.folder / START / shard_name(work, None), outside)
    write_first_streams(work, outside)
    record = {
        "version": FORMAT_VERSION,
        "fingerprint": job.fingerprint,
        "checkpoint": str(job.checkpoint),
        "tokens": work.tokens,
        "documents": sum(len(batch.ids) for batch in work.batches),
        "activation_bits": job.student.activation_bits,
        "products": str(work.dtype).removeprefix("torch."),
        "device": work.device.type,
        "threads": torch.get_num_threads(),
        "layers": [],
        "seconds": 0.0,
        "cpu_seconds": 0.0,
    }
    write_json(work.folder / RECORD, record)
    return record


def check_disk(work: Work) -> None:
    """A full disk would kill the process without a word, since the streams are mapped into memory."""
    start = work.start
    streams = 2 * work.tokens * (2 * 4 * start.hidden_size + 2 * work.dtype.itemsize * start.widest)
    weights = 4 * sum(tensor.numel() for tensor in start.saved_shapes().values())
    free = shutil.disk_usage(work.folder).free
    if free < streams + weights:
        raise CoreError(
            f"{work.folder}: the calibration writes {(streams + weights) / 1e9:.1f} GB here, {free / 1e9:.1f} are free",
            "free some space, or lower calibration.tokens",
        )


def calibrate_layer(work: Work, index: int) -> dict[str, Any]:
    """Make a ternary layer, write it, and take both streams past it; returns the layer's part of the record."""
    after = work.before(index + 1)
    shutil.rmtree(after, ignore_errors=True)  # of an attempt that was stopped
    shutil.copytree(work.before(index), after)
    groups: Sequence[Any] = LLAMA
    if isinstance(work.start, WholeStart):
        groups = found_groups(work.start, index, work.device)
    student, teacher = (open_stream(work, index, name) for name in MODELS)
    damping = 0.0
    with ExitStack() as quantised:
        for group in groups:
            with autocast(work.precision, work.device):
                for stream in (student, teacher):
                    stream.come_to(group, work.batches, work.device)
            damping = max(damping, fit_group(work, group, student, teacher))
            with autocast(work.precision, work.device):
                for linear in group.modules(student.layer):
                    quantised.enter_context(quantised_once(linear))
                for stream in (student, teacher):
                    stream.leave(group, work.batches, work.device)
        with autocast(work.precision, work.device):
            for stream in (student, teacher):
                stream.finish(work.batches, work.device)
    error = relative_error(student.hidden_ND, teacher.hidden_ND)
    prefix = f"{work.start.prefix}{index}."
    weights = {prefix + name: tensor.cpu() for name, tensor in student.layer.state_dict().items()}
    save_tensors(work.folder / START / shard_name(work, index), weights)
    for name in MODELS:
        sync(after / name)
    return {"layer": index, "stream_error": error, "damping": damping if damping < float("inf") else "diagonal"}


def finish(work: Work, job: Calibration, record: dict[str, Any]) -> dict[str, Any]:
    """Make a checkpoint of the layers, and put it in its place with the record."""
    made = work.folder / START
    start, shapes = work.start, work.start.saved_shapes()
    file_of = {name: shard_name(work, layer_of(name, start.prefix)) for name in shapes}
    write_index(made, file_of, 4 * sum(shapes[name].numel() for name in file_of))
    work.start.write_config(made)
    copy_tokenizer(job.tokenizer_folder, made)
    write_json(made / RECORD, record)
    target = job.folder / START
    shutil.rmtree(target, ignore_errors=True)
    made.rename(target)
    shutil.rmtree(work.folder, ignore_errors=True)
    assert len(record["layers"]) == start.layers
    return record


def layer_of(name: str, prefix: str) -> int | None:
    """The layer that a tensor belongs to."""
    return int(name.removeprefix(prefix).partition(".")[0]) if name.startswith(prefix) else None


def shard_name(work: Work, layer: int | None) -> str:
    """As transformers names the parts of a model; the first holds what is in no layer."""
    return f"model-{0 if layer is None else layer + 1:05d}-of-{work.start.layers:05d}.safetensors"


def save_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    with atomic_file(file) as partial:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, {"format": "pt"})


def _read(file: Path, fingerprint: str) -> dict[str, Any] | None:
    """The record in `file` if it is of this calibration; None else."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    same = isinstance(record, dict) and (record.get("version"), record.get("fingerprint")) == (
        FORMAT_VERSION,
        fingerprint,
    )
    return record if same else None
