"""Which of a run's files are uploaded: its exports, and its KD shards without this machine's folders."""

import json
from collections.abc import Mapping
from pathlib import Path

import attrs

from bitnet_cli import run_folder
from bitnet_cli.errors import UserError

AT_THE_ROOT = "hf"
"""This export's files lie at the repository's root, so that transformers opens it by the repository's name."""


CARD = "README.md"
"""Of either repository."""


@attrs.frozen(kw_only=True)
class Exports:
    """The exports of a run, of one checkpoint."""

    files: Mapping[str, Path]
    """Path in the repository → file."""
    checkpoint: str
    kinds: frozenset[str]

    def gguf(self) -> list[str]:
        return [name for name in self.files if name.endswith(".gguf")]


def find_exports(run: Path) -> Exports:
    """What ``exports/exports.json`` lists: files of anybody else's in there stay here. Raises UserError."""
    place = run / "exports"
    record = run_folder.read_json(place / "exports.json")
    listed = record.get("exports") if isinstance(record, dict) else None
    entries = {name: each for name, each in (listed or {}).items() if isinstance(each, dict)}
    found = {name: each for name, each in entries.items() if (place / name).exists()}
    if not found:
        raise UserError(f"{run} has no exports", f"make some with `bitnet export {run} --to gguf,hf`")
    checkpoints = sorted({str(each.get("checkpoint")) for each in found.values()})
    kinds = sorted({str(each.get("kind")) for each in found.values()})
    if len(checkpoints) > 1:
        raise UserError(
            f"the exports are of different checkpoints ({', '.join(checkpoints)})",
            f"make them again with `bitnet export {run} --to {','.join(kinds)}`",
        )
    files: dict[str, Path] = {}
    for target in found:
        for path in [place / target] if (place / target).is_file() else sorted((place / target).rglob("*")):
            if path.is_file() and not path.name.startswith("."):
                name = path.relative_to(place).as_posix().removeprefix(f"{AT_THE_ROOT}/")
                files[name] = path
    files.pop(CARD, None)  # that of the `hf` folder: the repository's says more
    return Exports(files=files, checkpoint=checkpoints[0], kinds=frozenset(kinds))


def shared_shards(run: Path, place: Path) -> dict[str, Path]:
    """Path in the repository → file; copies without this machine's folders are made in `place`. Raises CoreError."""
    from bitnet_core.traces.schema import trace_files

    return {f"data/{file.name}": copy_without_folders(file, place / file.name) for file in trace_files(run)}


def copy_without_folders(file: Path, to: Path) -> Path:
    """A shard that others may have: `to`, a copy whose metadata names no folder of this machine; `file` if it has none.

    Values, row groups and the rest of the metadata are the same. Raises CoreError.
    """
    from bitnet_core.traces.parquet import open_parquet
    from bitnet_core.traces.schema import MADE_BY, METADATA_KEY, read_metadata
    from bitnet_core.traces.write_shards import shard_writer

    shard = open_parquet(file, MADE_BY)
    metadata = read_metadata(shard.schema_arrow, file)
    record = json.loads((shard.schema_arrow.metadata or {}).get(METADATA_KEY, b"{}"))
    teacher = record.get("raw", {}).get("teacher") or {}
    if metadata is None or teacher.pop("model_folder", None) is None:
        return file
    schema = shard.schema_arrow.with_metadata({METADATA_KEY: json.dumps(record, sort_keys=True).encode()})
    with shard_writer(to, schema, metadata.target) as writer:
        for group in range(shard.num_row_groups):
            table = shard.read_row_group(group).cast(schema)
            writer.write_table(table, row_group_size=table.num_rows)
    return to
