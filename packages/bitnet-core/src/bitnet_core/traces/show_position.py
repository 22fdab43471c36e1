"""One position of the traces for human eyes: the teacher's candidates as text, and a student's probabilities beside.

K candidates, V vocabulary, T tokens before the position.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bitnet_core.errors import CoreError
from bitnet_core.traces import schema
from bitnet_core.traces.dataset import check_tokenizer, common_metadata
from bitnet_core.traces.parquet import damage_named, open_parquet
from bitnet_core.traces.schema import trace_files
from bitnet_core.traces.target_kinds import ALL_EXTRA, TOPK, is_sampled
from bitnet_core.traces.tokenizer import id_to_bytes, identity_of, load_tokenizer, vocabulary_size


def traces_tokenizer(run_or_folder: Path, raw: object) -> Path:
    """A folder with the traces' tokenizer: the run's newest checkpoint, else the local teacher's own folder.

    raw: the traces' raw metadata. Raises CoreError where neither is there.
    """
    candidates = sorted(
        run_or_folder.glob("checkpoints/step_*/tokenizer.json"), key=lambda file: file.stat().st_mtime, reverse=True
    )
    if candidates:
        return candidates[0].parent
    teacher = raw.get("teacher") if isinstance(raw, dict) else None
    folder = teacher.get("model_folder") if isinstance(teacher, dict) else None
    if folder and Path(folder).is_dir():
        return Path(folder)
    raise CoreError(f"{run_or_folder}: no tokenizer is known for these traces", "name its folder with --tokenizer")


CONTEXT_BYTES = 200


@attrs.frozen
class Candidate:
    """A token that the teacher offered."""

    token_id: int
    text: str
    teacher: float
    """Probability; of a sampled target the draws' weight, which estimates it."""
    student: float | None
    """Probability; None without a student."""
    is_sampled: bool
    """It is the token that stands there."""


@attrs.frozen
class ShownPosition:
    """A KD position. Probabilities are of the whole vocabulary."""

    file: str
    number: int
    prompt_idx: int
    sample_idx: int
    step_idx: int
    split: str
    context: str
    """The text before, its last `CONTEXT_BYTES` bytes."""
    token_id: int
    token: str
    """The token that stands there."""
    is_struct_token: bool
    candidates: tuple[Candidate, ...]
    other: float | None
    """None of a sampled target: its draws stand for the whole vocabulary."""
    student_other: float | None
    student_token: float | None
    """The student's probability of the token that stands there."""
    kl: float | None
    """KL(teacher ‖ student), nats: over the K + 1 buckets, or, of a sampled target, its estimate from the draws."""
    target: str = TOPK["kind"]
    """The kind of the traces' target."""


def show_position(
    run_or_folder: Path, number: int, checkpoint: Path | None = None, tokenizer_folder: Path | None = None
) -> ShownPosition:
    """The `number`-th KD position (from 0, in the order of the files); memory: some row groups.

    checkpoint: a folder with a student, whose probabilities are put beside. The tokenizer is the one named, else the
    checkpoint's, else the run's own. Raises CoreError for a number beyond the last, and for another tokenizer.
    """
    folder = Path(run_or_folder)
    files = trace_files(folder)
    metadata = common_metadata(files)
    named = tokenizer_folder or checkpoint or traces_tokenizer(folder, metadata.raw if metadata else None)
    if not named.is_dir():
        raise CoreError(f"{named}: no such folder", "name one with a tokenizer.json (and, for --checkpoint, a student)")
    tokenizer = load_tokenizer(named)
    if metadata is not None:
        # By ids: a checkpoint's own files may name another class, which cuts text otherwise, and no text is cut here.
        own = identity_of(tokenizer)._replace(cutting=metadata.tokenizer["cutting"] or "")
        check_tokenizer(metadata, own, folder, named)
    path, document, step = _find(files, number)
    row = document.slice(step, 1).to_pylist()[0]
    ids_T = document["teacher_sample_id"].to_numpy()[:step]
    width = metadata.vocab_size if metadata else vocabulary_size(tokenizer)
    bytes_V = id_to_bytes(tokenizer, width)
    student_V = None if checkpoint is None else next_token_probabilities(checkpoint, ids_T)

    target = metadata.target if metadata else TOPK
    candidates = _candidates(row, target, bytes_V, student_V)
    other = None if is_sampled(target) else float(np.exp(row["other_logprob"]))
    student_other = None if student_V is None else max(0.0, 1.0 - sum(each.student or 0.0 for each in candidates))
    context = b"".join(bytes_V[token_id] for token_id in ids_T.tolist())[-CONTEXT_BYTES:]
    return ShownPosition(
        file=path.name,
        number=number,
        prompt_idx=row["prompt_idx"],
        sample_idx=row.get("sample_idx", 0),
        step_idx=row["step_idx"],
        split=row.get("split", "unknown"),
        context=context.decode("utf-8", "replace"),
        token_id=row["teacher_sample_id"],
        token=_text(bytes_V[row["teacher_sample_id"]]),
        is_struct_token=row["is_struct_token"],
        target=target["kind"],
        candidates=candidates,
        other=other,
        student_other=student_other,
        student_token=None if student_V is None else float(student_V[row["teacher_sample_id"]]),
        kl=None if student_other is None else _kl(candidates, other, student_other, row),
    )


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")


def _candidates(
    row: Mapping[str, Any],
    target: Mapping[str, Any],
    bytes_V: Sequence[bytes],
    student_V: NDArray[np.float64] | None,
) -> tuple[Candidate, ...]:
    log_total = row["log_z"] if is_sampled(target) else 0.0
    return tuple(
        Candidate(
            token_id=token_id,
            text=_text(bytes_V[token_id]),
            teacher=float(np.exp(logprob + log_total)),
            student=None if student_V is None else float(student_V[token_id]),
            is_sampled=token_id == row["teacher_sample_id"],
        )
        for token_id, logprob in zip(row["topk_ids"], row["topk_logprobs"], strict=True)
        if logprob > -np.inf
    )


def _find(files: list[Path], number: int) -> tuple[Path, pa.Table, int]:
    """The file, the rows of the document up to the position and after, and the position's place in them."""
    if number < 0:
        raise CoreError(f"position {number}: positions count from 0", "name one of at least 0")
    seen = 0
    names = [name for name in (*schema.SCHEMA.names, *ALL_EXTRA) if name != "teacher_sample_text"]
    for path in files:
        file = open_parquet(path, schema.MADE_BY)
        schema.check_columns(file.schema_arrow, path)
        columns = [name for name in names if name in file.schema_arrow.names]
        for group in range(file.num_row_groups):
            with damage_named(path, schema.MADE_BY):
                kd = _has_kd(file.read_row_group(group, columns=[c for c in columns if c in _KD_COLUMNS]))
                positions = int(kd.sum())
            if seen + positions <= number:
                seen += positions
                continue
            row = int(np.flatnonzero(kd)[number - seen])
            with damage_named(path, schema.MADE_BY):
                # A foreign file may begin a document in the row group before.
                tables = [file.read_row_group(g, columns=columns) for g in range(max(0, group - 1), group + 1)]
                row += sum(len(table) for table in tables[:-1])
                table = pa.concat_tables(tables)
                step = int(table["step_idx"][row].as_py())
            if step > row:
                raise CoreError(
                    f"{path}: rows are missing before row {row} of row group {group}",
                    "find the damage with `bitnet traces validate`",
                )
            return path, table.slice(row - step, step + 1), step
    raise CoreError(f"position {number}: the traces have {seen} KD positions", f"name one from 0 to {seen - 1}")


_KD_COLUMNS = ("has_kd", "topk_logprobs", "step_idx")


def _has_kd(table: pa.Table) -> NDArray[np.bool_]:
    if "has_kd" in table.column_names:
        result: NDArray[np.bool_] = table["has_kd"].to_numpy()
        return result
    finite = [bool(np.isfinite(np.asarray(row, dtype=float)).any()) for row in table["topk_logprobs"].to_pylist()]
    return np.array(finite, dtype=bool) & (table["step_idx"].to_numpy() > 0)


def next_token_probabilities(checkpoint: Path, ids_T: NDArray[Any]) -> NDArray[np.float64]:
    """The student's distribution after the tokens `ids_T`, float64 [V]. Raises CoreError for what is no checkpoint."""
    import torch

    from bitnet_core.model.read_checkpoint import load_model

    if not (checkpoint / "config.json").is_file():
        raise CoreError(
            f"{checkpoint}: no checkpoint (no config.json in it)", "name a folder such as checkpoints/step_120"
        )
    model = load_model(checkpoint).eval()
    with torch.inference_mode():
        logits_V = model(torch.from_numpy(ids_T.astype(np.int64))[None], logits_to_keep=1).logits[0, -1]
        probabilities: NDArray[np.float64] = logits_V.double().softmax(-1).numpy()
    return probabilities


def _kl(candidates: tuple[Candidate, ...], other: float | None, student_other: float, row: Mapping[str, Any]) -> float:
    if other is None:  # −Σ ŵ·log q − H(p), from the draws
        cross = -sum(each.teacher * float(np.log(max(each.student or 0.0, 1e-12))) for each in candidates)
        return cross - float(row["entropy"])
    teacher = np.array([each.teacher for each in candidates] + [other])
    student = np.array([each.student or 0.0 for each in candidates] + [student_other])
    teacher, student = teacher / teacher.sum(), np.maximum(student, 1e-12)
    return float(np.sum(teacher * (np.log(np.maximum(teacher, 1e-300)) - np.log(student))))
