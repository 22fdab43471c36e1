"""From the journal to raw shards: a completion's row, the files by prompt and sample, and files that others left."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bitnet_providers.collect.plan_requests import Plan, Planned
from bitnet_providers.contract import Completion, ProviderError
from bitnet_providers.raw.completion_ids import Key, key_ids
from bitnet_providers.raw.journal import Rows
from bitnet_providers.raw.no_answer import begins_in_thought, no_answer
from bitnet_providers.raw.write_shard import RAW_SCHEMA, completion_columns, shard_path, write_raw_shard


def journal_row(planned: Planned, completion: Completion) -> dict[str, Any]:
    """The columns of RAW_SCHEMA; sample_idx is the draw of its key. Raises ProviderError for a malformed completion."""
    sha256, draw = planned.key
    return {
        "prompt_idx": planned.prompt_idx,
        "sample_idx": draw,
        "request_sha256": sha256,
        "source_id": planned.source_id,
        "kind": planned.kind,
        "format": planned.format,
        "messages": json.dumps([dict(message) for message in planned.request.messages], ensure_ascii=False),
        **completion_columns(completion),
    }


def no_answers(gathered: Rows, planned: Plan) -> dict[Key, str]:
    """What the journal has and no shard gets, with the reason: what a filter cut, and thoughts without an answer."""
    sampled = planned.take(planned.is_sample)
    places = gathered.find(sampled.ids)
    sampled, places = sampled.take(places >= 0), places[places >= 0]
    numbers, endings = gathered.ending_numbers[places], gathered.endings
    thinks = begins_in_thought(Counter(endings[number] for number in numbers.tolist()))
    reasons = [no_answer(finish, repairs, thinks) for finish, repairs in endings]
    left_out = np.isin(numbers, [number for number, reason in enumerate(reasons) if reason is not None])
    return {
        each.key: reasons[number] or ""
        for each, number in zip(sampled.take(left_out), numbers[left_out].tolist(), strict=True)
    }


def shard_names(raw_folder: Path, completions: int, per_shard: int, part: str | None) -> list[Path]:
    """The files for so many completions; `part` is "i/n" where a machine gathers only its part."""
    return [shard_path(raw_folder, number, part) for number in range(-(-completions // per_shard))]


def write_shards(
    raw_folder: Path,
    planned: Plan,
    gathered: Rows,
    metadata: Mapping[str, Any],
    per_shard: int,
    part: str | None,
) -> dict[str, Any]:
    """Write the shards by prompt and sample, remove those of an earlier, longer collection, and count.

    `planned` are those that `gathered` has.
    """
    tokens_by: Counter[str] = Counter()
    completions_by: Counter[str] = Counter()
    models: Counter[str] = Counter()
    repairs: Counter[str] = Counter()
    kd_positions = 0
    paths = shard_names(raw_folder, len(planned), per_shard, part)
    for number, path in enumerate(paths):
        some = list(planned[number * per_shard : (number + 1) * per_shard])
        table = _shard_table(some, gathered)
        write_raw_shard(path, table, metadata)
        models.update(table["model"].to_pylist())
        for each, positions in zip(some, table["candidate_counts"].to_numpy(), strict=True):
            name = f"{each.kind} {each.format or 'plain'}"
            completions_by[name] += 1
            tokens_by[name] += len(positions)
            kd_positions += int(np.count_nonzero(positions))
        for told in table["repairs"].to_pylist():
            repairs.update(json.loads(told) if told else {})
    for path in _others(raw_folder, paths, part):  # their rows are in the journal: see check_others
        path.unlink()
    return {
        "completions": len(planned),
        "tokens": sum(tokens_by.values()),
        "kd_positions": kd_positions,
        "completions_by": dict(sorted(completions_by.items())),
        "tokens_by": dict(sorted(tokens_by.items())),
        "models": dict(models.most_common()),
        "repairs": dict(sorted(repairs.items())),
        "shards": len(paths),
    }


def check_others(raw_folder: Path, keep: Sequence[Path], gathered: Rows, part: str | None, damaged: int = 0) -> None:
    """Shards that will be removed, or written anew (`keep`), hold nothing that no journal has.

    `damaged`: so many completions of the journal can't be read; they are asked again. Raises ProviderError naming a
    shard that holds others: they would be lost, and perhaps paid for again.
    """
    removed = _others(raw_folder, keep, part)
    unknown: dict[Path, set[str]] = {}
    for path in [*removed, *filter(Path.exists, keep)]:
        try:
            unknown[path] = _digests_not_in(gathered, path)
        except (pa.ArrowException, KeyError, OSError) as error:
            if path in removed:
                raise ProviderError(f"{path} can't be read ({error})", "move it out of the folder") from None
    if any(unknown.values()):  # of the draw that a row was, the shard doesn't tell
        known = {sha256 for sha256, _ in gathered}
        unknown = {path: digests - known for path, digests in unknown.items()}
    again = sum(len(digests) for path, digests in unknown.items() if path not in removed) > damaged
    for path in (path for path, digests in unknown.items() if digests and (again or path in removed)):
        raise ProviderError(
            f"{path} holds completions that no journal in {raw_folder} has",
            "copy the journal-*.bin and ledger-*.jsonl of the machine that made it into the folder, or move the "
            "file out of it",
        )


def _digests_not_in(gathered: Rows, shard: Path) -> set[str]:
    """Digests of requests in a shard of which the journal seems to have no answer. Raises what a broken file raises."""
    if not shard.is_file():
        raise OSError("not a file")
    columns = pq.read_table(shard, columns=["request_sha256", "sample_idx"]).to_pydict()
    keys = list(zip(columns["request_sha256"], columns["sample_idx"], strict=True))
    found = gathered.find(key_ids(keys)) >= 0
    return {sha256 for (sha256, _), is_there in zip(keys, found.tolist(), strict=True) if not is_there}


def _others(raw_folder: Path, keep: Sequence[Path], part: str | None) -> list[Path]:
    """Shards that this collection does not write, without those of other machines' parts of the same whole."""
    names = {path.name for path in keep}
    found = [path for path in sorted(raw_folder.glob("shard_*.parquet")) if path.name not in names]
    if part is None:
        return found
    number, machines = part.split("/")
    beside = re.compile(rf"shard_(?!{number}of)\d+of{machines}_\d+\.parquet")
    return [path for path in found if not beside.fullmatch(path.name)]


def _shard_table(part: Sequence[Planned], gathered: Rows) -> pa.Table:
    """The journal's rows in the plan's order; where they stand in the files is taken from the plan of today."""
    rows = [gathered[each.key] for each in part]
    table = pa.Table.from_batches([row.batch.slice(row.index, 1) for row in rows], RAW_SCHEMA)
    of_plan: dict[str, list[Any]] = {
        "prompt_idx": [each.prompt_idx for each in part],
        "sample_idx": [each.sample_idx for each in part],
        "source_id": [each.source_id for each in part],
        "kind": [each.kind for each in part],
        "format": [each.format for each in part],
    }
    for name, values in of_plan.items():
        index = RAW_SCHEMA.get_field_index(name)
        table = table.set_column(index, RAW_SCHEMA.field(name), pa.array(values, RAW_SCHEMA.field(name).type))
    return table.combine_chunks()
