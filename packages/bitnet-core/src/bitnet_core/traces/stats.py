"""What is in a folder of KD traces: counts and means, by split. Positions are rows; masses are probabilities."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bitnet_core.traces import schema
from bitnet_core.traces.parquet import damage_named, flat_values, open_parquet, whole
from bitnet_core.traces.schema import trace_files
from bitnet_core.traces.target_kinds import TOPK, is_sampled

_COLUMNS = [
    *("prompt_idx", "sample_idx", "step_idx", "other_logprob", "is_struct_token"),
    *("teacher_sample_text", "is_prompt", "has_kd", "split"),
]
_FIELDS = (
    *("documents", "rows", "response_positions", "kd_positions", "struct_positions", "response_bytes"),
    *("topk_mass", "other_mass"),
)
OTHER_EDGES = (0.0, 1e-4, 1e-3, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)
"""Edges of the histogram of P(other); a bin holds its lower edge, the last one both."""
MERGING = ("merged_candidates", "merged_mass", "mass_lost_to_other", "mass_clamped_positions", "sampled_outside_top_k")
"""What the projection counted and the rows no longer show; out of its stage's record in a run folder."""


class TraceSums:
    """Running sums over tables of KD rows, by split; small whatever the size of the traces."""

    def __init__(self, target: Mapping[str, Any] = TOPK) -> None:
        self._has_other = not is_sampled(target)
        self._sums = {split: dict.fromkeys(_FIELDS, 0.0) for split in schema.SPLITS}
        self._histogram = np.zeros(len(OTHER_EDGES) - 1, dtype=np.int64)

    @property
    def rows(self) -> int:
        return int(sum(sums["rows"] for sums in self._sums.values()))

    @property
    def kd_positions(self) -> int:
        return int(sum(sums["kd_positions"] for sums in self._sums.values()))

    def add(self, table: pa.Table) -> None:
        """Add rows; a document is counted where its step 0 is."""

        def column(name: str) -> Any:
            return table[name].to_numpy()

        has_kd, is_prompt, is_struct = column("has_kd"), column("is_prompt"), column("is_struct_token")
        other_mass = np.exp(column("other_logprob").astype(np.float64))
        sizes = pc.binary_length(table["teacher_sample_text"]).to_numpy()
        is_start = column("step_idx") == 0
        split = pc.fill_null(pc.index_in(table["split"].cast(pa.string()), pa.array(schema.SPLITS)), -1).to_numpy()
        for number, name in enumerate(schema.SPLITS):
            rows = split == number
            response, kd = rows & ~is_prompt, rows & has_kd
            for field, amount in (
                ("documents", (rows & is_start).sum()),
                ("rows", rows.sum()),
                ("response_positions", response.sum()),
                ("kd_positions", kd.sum()),
                ("struct_positions", (response & is_struct).sum()),
                ("response_bytes", sizes[response].sum()),
                ("topk_mass", (1.0 - other_mass[kd]).sum()),
                ("other_mass", other_mass[kd].sum()),
            ):
                self._sums[name][field] += float(amount)
        self._histogram += np.histogram(np.clip(other_mass[has_kd], 0.0, 1.0), OTHER_EDGES)[0]

    def summary(self) -> dict[str, Any]:
        """Counts and means over everything, the same for each split under ``splits`` ("test" where there is one), and
        ``other_mass_histogram``."""
        everything = {field: sum(sums[field] for sums in self._sums.values()) for field in _FIELDS}
        there = {name: sums for name, sums in self._sums.items() if name != "test" or sums["rows"]}
        splits = {name: _means(sums, self._has_other) for name, sums in there.items()}
        histogram = {"edges": list(OTHER_EDGES), "counts": self._histogram.tolist()} if self._has_other else None
        return {**_means(everything, self._has_other), "splits": splits, "other_mass_histogram": histogram}


def _means(sums: Mapping[str, float], has_other: bool) -> dict[str, Any]:
    def share(part: str, of: str) -> float | None:
        return sums[part] / sums[of] if sums[of] else None

    return {
        "documents": int(sums["documents"]),
        "rows": int(sums["rows"]),
        "response_positions": int(sums["response_positions"]),
        "kd_positions": int(sums["kd_positions"]),
        "kd_coverage": share("kd_positions", "response_positions"),
        "mean_topk_mass": share("topk_mass", "kd_positions") if has_other else None,
        "mean_other_mass": share("other_mass", "kd_positions") if has_other else None,
        "struct_share": share("struct_positions", "response_positions"),
        "bytes_per_position": share("response_bytes", "response_positions"),
    }


def trace_stats(run_or_folder: Path) -> dict[str, Any]:
    """Read all KD shards of a run folder or folder, a row group at a time.

    Means are over the response (``bytes_per_position``, ``struct_share``, ``kd_coverage``) or KD positions (masses);
    None where there is none. Beside those: ``target`` (kind and settings), ``mean_candidates`` of a KD position,
    ``other_mass_histogram`` (``edges`` and ``counts`` of KD positions; None, as the masses, of sampled targets, where
    nothing is left for other), ``file_bytes``, ``file_bytes_per_kd_position``, and, in a run folder, ``projection``
    with what `MERGING` names as far as the project stage recorded it. Raises CoreError for an empty folder, a damaged
    shard, or one that lacks columns.
    """
    folder = Path(run_or_folder)
    files = trace_files(folder)
    metadata = schema.read_metadata(open_parquet(files[0], schema.MADE_BY).schema_arrow, files[0])
    target = metadata.target if metadata else TOPK
    sums, candidates = TraceSums(target), 0
    for path in files:
        file = open_parquet(path, schema.MADE_BY)
        schema.check_columns(file.schema_arrow, path)
        schema.check_complete(file.schema_arrow, path, target)
        for group in range(file.num_row_groups):
            with damage_named(path, schema.MADE_BY):
                table = file.read_row_group(group, columns=[*_COLUMNS, "topk_logprobs"])
                sums.add(table)
                candidates += int(np.isfinite(flat_values(whole(table["topk_logprobs"]))).sum())
    file_bytes = sum(path.stat().st_size for path in files)
    return {
        **sums.summary(),
        "target": dict(target),
        "mean_candidates": candidates / sums.kd_positions if sums.kd_positions else None,
        "file_bytes": file_bytes,
        "file_bytes_per_kd_position": file_bytes / sums.kd_positions if sums.kd_positions else None,
        "projection": _recorded(folder),
    }


def _recorded(run_folder: Path) -> dict[str, Any] | None:
    """Of the project stage's summary, what the rows no longer show; None outside a run folder."""
    try:
        summary = json.loads((run_folder / "stages" / "project" / "done.json").read_text())["summary"]
        return {name: summary[name] for name in MERGING if name in summary}
    except (OSError, ValueError, KeyError, TypeError):
        return None
