"""KD shard v2 (docs/kd-shard.md), one row a token position; v1 is read too. R rows, K candidates, V vocabulary.

Row t holds token t and the teacher's distribution it was drawn from; the student's logits at t − 1 meet it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import pyarrow as pa

from bitnet_core.errors import CoreError
from bitnet_core.traces.parquet import shard_files
from bitnet_core.traces.target_kinds import TOPK, extra_columns, is_sampled, target_of

KD_VERSION = 2
"""Written. Version 1 lacks ``in_ce``, ``template`` and ``tokenizer``; it is read as well."""


METADATA_KEY = b"bitnet_kd"
SHARDS = "kd_shard_*.parquet"
MADE_BY = "the project stage (bitnet run MANIFEST --from project)"
"""Named in errors: how a KD shard is made again."""


SEED_COLUMNS = (
    "prompt_idx",
    "step_idx",
    "teacher_sample_id",
    "topk_ids",
    "topk_logprobs",
    "other_logprob",
    "is_struct_token",
)
"""What a KD shard must have at least."""


SCHEMA = pa.schema(
    [
        ("prompt_idx", pa.int64()),
        ("sample_idx", pa.int32()),
        ("step_idx", pa.int32()),
        ("teacher_sample_id", pa.int32()),
        ("topk_ids", pa.list_(pa.int32())),
        ("topk_logprobs", pa.list_(pa.float16())),
        ("other_logprob", pa.float32()),
        ("is_struct_token", pa.bool_()),
        ("teacher_sample_text", pa.binary()),
        ("is_prompt", pa.bool_()),
        ("has_kd", pa.bool_()),
        ("sample_logprob", pa.float32()),
        ("split", pa.dictionary(pa.int32(), pa.string())),
        ("in_ce", pa.bool_()),
    ]
)
"""Of all kinds of targets; `kd_schema` has one kind's."""


SINCE_2 = ("in_ce",)
"""Columns that version 1 has not; where they are absent, they are True."""


SPLITS = ("train", "heldout", "test")
"""To learn from; to choose by (validation); and for the figures that are published (``collect.test_texts``)."""


@attrs.frozen(kw_only=True)
class KDMetadata:
    """What a KD shard says of itself: JSON under the file metadata's key ``bitnet_kd``."""

    k: int
    vocab_size: int
    tokenizer_sha256: str
    raw: Mapping[str, Any]
    """The metadata of the raw shards it was made from."""
    projection: Mapping[str, Any]
    """``path`` ("identity"), ``id`` (the same in all shards of one projection), ``seed``, ``holdout_fraction``; since
    near-duplicates stay together also ``near_duplicates`` (the rule) and ``test_documents`` (how many)."""
    target: Mapping[str, Any] = TOPK
    """``kind`` and what a loss must know of it; see `target_kinds`."""
    template: Mapping[str, str | None] = attrs.field(factory=lambda: {"sha256": None, "clock": None})
    """The chat template that the prompts went through: ``sha256`` of its text, and the moment that it was told, as
    ``clock``; None: none, or not known."""
    tokenizer: Mapping[str, str | None] = attrs.Factory(
        lambda self: {"ids": self.tokenizer_sha256, "cutting": None}, takes_self=True
    )
    """Digests: ``ids`` is `tokenizer_sha256`; ``cutting`` says how it cuts text (None: not known)."""
    version: int = KD_VERSION

    def to_json(self) -> bytes:
        return json.dumps(attrs.asdict(self) | {"target": dict(self.target)}, sort_keys=True).encode()


def kd_schema(target: Mapping[str, Any] = TOPK) -> pa.Schema:
    """The columns of a shard with this kind of target.

    Draws' log-probabilities are float32: rounding to halves would move a weight by up to 0.2 %, always the same way,
    where the estimate is to be unbiased; and at t = 1 they are so few different numbers that they take less room.
    """
    schema = SCHEMA
    if is_sampled(target):
        place = schema.get_field_index("topk_logprobs")
        schema = schema.set(place, pa.field("topk_logprobs", pa.list_(pa.float32())))
    for name in extra_columns(target):
        schema = schema.append(pa.field(name, pa.float32()))
    return schema


def read_metadata(schema: pa.Schema, file: Path) -> KDMetadata | None:
    """The metadata of a shard, None where it has none. Raises CoreError for another version or a malformed record."""
    text = (schema.metadata or {}).get(METADATA_KEY)
    if text is None:
        return None
    try:
        record = json.loads(text)
        version = record["version"]
        if version in (1, KD_VERSION):
            record["target"] = target_of(record, file)
            names = [field.name for field in attrs.fields(KDMetadata)]
            later = ("template", "tokenizer") if version == 1 else ()
            metadata = KDMetadata(**{name: record[name] for name in names if name not in later})
            _check_types(metadata)
            missing = [name for name in extra_columns(metadata.target) if name not in schema.names]
            if missing:
                raise CoreError(
                    f"{file}: targets of kind {metadata.target['kind']} without the columns {', '.join(missing)}",
                    f"run {MADE_BY} again",
                )
            return metadata
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CoreError(f"{file}: its bitnet_kd metadata is malformed ({error!r})", f"run {MADE_BY} again") from error
    raise CoreError(
        f"{file}: KD shard version {version}, but this bitnet-core reads versions 1 to {KD_VERSION}",
        f"run {MADE_BY} again, or install the bitnet-core that wrote it",
    )


def _check_types(metadata: KDMetadata) -> None:
    """Raises TypeError."""
    tables = ("raw", "projection", "target", "template", "tokenizer")
    for kind, names in ((int, ("k", "vocab_size")), (str, ("tokenizer_sha256",)), (dict, tables)):
        for name in names:
            if not isinstance(getattr(metadata, name), kind):
                raise TypeError(f"{name} is no {kind.__name__}")


def check_columns(schema: pa.Schema, file: Path) -> None:
    """Raise CoreError where a column is missing or has a type that the dataset can't use."""
    missing = [name for name in SEED_COLUMNS if name not in schema.names]
    if missing:
        raise CoreError(f"{file}: not a KD shard, it lacks the columns {', '.join(missing)}", f"run {MADE_BY} again")
    for field in schema:
        if field.name in SCHEMA.names and not _is_of_kind(field.type, SCHEMA.field(field.name).type):
            why = f"{file}: column {field.name} is {field.type}, not {SCHEMA.field(field.name).type} or its like"
            raise CoreError(why, f"run {MADE_BY} again")
    for name, is_good, wanted in (
        ("topk_ids", pa.types.is_integer, "a list of integers"),
        ("topk_logprobs", pa.types.is_floating, "a list of floats"),
    ):
        type_ = schema.field(name).type
        if not (pa.types.is_list(type_) or pa.types.is_large_list(type_)) or not is_good(type_.value_type):
            raise CoreError(f"{file}: column {name} is {type_}, not {wanted}", f"run {MADE_BY} again")


def _is_of_kind(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether both are numbers (or flags), texts (or bytes), or lists."""

    def kind(of: pa.DataType) -> str:
        of = of.value_type if pa.types.is_dictionary(of) else of
        texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
        if any(is_text(of) for is_text in texts):
            return "text"
        return "number" if pa.types.is_primitive(of) else "list" if pa.types.is_nested(of) else "nothing"

    return kind(found) == kind(wanted)


def check_complete(schema: pa.Schema, file: Path, target: Mapping[str, Any] = TOPK) -> None:
    """Raise CoreError where a column of SCHEMA or of the target's kind is missing."""
    missing = [name for name in kd_schema(target).names if name not in (*schema.names, *SINCE_2)]
    if missing:
        raise CoreError(f"{file}: a trace without the columns {', '.join(missing)}", f"run {MADE_BY} again")


def trace_files(run_or_folder: Path) -> list[Path]:
    """The KD shards of a run folder, of a folder of shards, or the one file given, in order.

    Raises CoreError where there is none.
    """
    if run_or_folder.is_file():
        return [run_or_folder]
    data = run_or_folder / "data"
    folder = data if data.is_dir() and not list(run_or_folder.glob(SHARDS)) else run_or_folder
    return shard_files(folder, SHARDS, MADE_BY)


def has_traces(run_or_folder: Path) -> bool:
    """Whether there are KD shards in a run folder or folder of shards."""
    return any(run_or_folder.glob(SHARDS)) or any((run_or_folder / "data").glob(SHARDS))
