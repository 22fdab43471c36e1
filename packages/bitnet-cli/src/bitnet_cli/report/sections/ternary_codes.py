"""The ternary codes of each layer, from the newest checkpoint's ``step_N_health.json``."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from bitnet_cli.report.blocks import Block, Figure, Heading, Table, Text
from bitnet_cli.report.charts.chart_data import Cells
from bitnet_cli.report.number_format import number
from bitnet_cli.report.read_run import RunRecord

_BLOCK = re.compile(r"\.(\d+)\.(?:.*\.)?(\w+?)(?:_proj)?$")
_SHARES = ("minus", "zero", "plus")
_PARTS = ("−1", "0", "+1")


def codes_blocks(run: RunRecord) -> Iterator[Block]:
    """Nothing where no checkpoint recorded its health."""
    healthy = [each for each in run.health if _layers(each)]
    if not healthy:
        return
    health, layers = healthy[-1], _layers(healthy[-1])
    yield Heading("Codes per layer")
    yield Text(
        f"Of the checkpoint at step {number(health.get('step'))}: which share of each layer's weights is −1, 0, and "
        f"+1, and which share has changed its code since the checkpoint before. {_dead(layers)}"
    )
    charts = [
        Cells(title="Shares of −1, 0, +1", parts=_PARTS, **_matrix(layers, _SHARES)),
        Cells(title="Codes that flipped, %", **_matrix(layers, ("flipped",))),
    ]
    if any(layer.get("dead_rows") for layer in layers.values()):
        charts.append(Cells(title="Rows without a live code, %", **_matrix(layers, ("dead_rows",))))
    yield Figure("codes", "A row for each block of the student, a column for each of its matrices.", tuple(charts))
    yield Table(
        ("step", "−1, mean", "0, mean", "+1, mean", "dead rows, worst layer", "flipped, mean"), _by_step(healthy)
    )


def _layers(health: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The layers that have every share; a record of another version may have others."""
    layers = health.get("layers")
    return {
        str(name): layer
        for name, layer in (layers.items() if isinstance(layers, dict) else ())
        if isinstance(layer, dict) and all(isinstance(layer.get(key), int | float) for key in (*_SHARES, "flipped"))
    }


def _matrix(layers: Mapping[str, Mapping[str, float]], keys: tuple[str, ...]) -> dict[str, Any]:
    """Rows (blocks), columns (matrices) and values of `Cells`."""
    found: dict[str, dict[str, tuple[float, ...]]] = {}
    for name, layer in layers.items():
        match = _BLOCK.search(name)
        block, matrix = (match[1], match[2]) if match else (name, "weight")
        found.setdefault(block, {})[matrix] = tuple(layer.get(key, 0.0) for key in keys)
    columns = tuple(dict.fromkeys(matrix for row in found.values() for matrix in row))
    values = tuple(tuple(row.get(column) for column in columns) for row in found.values())
    return {"rows": tuple(found), "columns": columns, "values": values}


def _dead(layers: Mapping[str, Mapping[str, float]]) -> str:
    worst = max(layers, key=lambda name: layers[name].get("dead_rows", 0.0))
    share = layers[worst].get("dead_rows", 0.0)
    return f"At worst {100 * share:.2g} % of a layer's rows are dead, in {worst}." if share else "No row is dead."


def _by_step(healthy: list[dict[str, Any]]) -> tuple[tuple[str, ...], ...]:
    """How the means moved from checkpoint to checkpoint, at most the last eight."""
    rows = []
    for health in healthy[-8:]:
        layers = list(_layers(health).values())
        means = [sum(layer[key] for layer in layers) / len(layers) for key in (*_SHARES, "flipped")]
        dead = max(layer.get("dead_rows", 0.0) for layer in layers)
        shares = [f"{100 * value:.2f} %" for value in (*means[:3], dead, means[3])]
        rows.append((number(health.get("step")), *shares))
    return tuple(rows)
