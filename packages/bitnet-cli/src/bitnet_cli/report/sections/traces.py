"""What the traces hold: how much of the teacher's mass is known, and where."""

from collections.abc import Iterator
from typing import Any

from bitnet_cli.report.blocks import Block, Card, Cards, Figure, Heading, Table, Text
from bitnet_cli.report.charts.chart_data import Bars
from bitnet_cli.report.number_format import group_columns, is_grouped, number, percent, scalar_rows
from bitnet_cli.report.read_run import RunRecord
from bitnet_cli.report.sections.teacher import probe_blocks

_SHORT = 8
"""Rows of a table that need no folding."""


def trace_blocks(run: RunRecord) -> Iterator[Block]:
    yield Heading("Trace quality")
    projected = run.done["project"].summary if "project" in run.done else {}
    if cards := tuple(_cards(projected)):
        yield Cards(cards)
    if (bars := _other_mass(projected.get("other_mass_histogram"))) is not None:
        yield Figure("other_mass", "How much of the teacher's probability lies outside its known candidates.", (bars,))
    yield from probe_blocks(run.probe)
    for stage, title in (("collect", "What the teacher said"), ("project", "KD traces in the student's tokens")):
        yield Heading(title, level=3)
        done = run.done.get(stage)
        if done is None:
            yield Text(f"Not there yet: {stage} has not run.")
            continue
        shown = {name: value for name, value in done.summary.items() if name != "other_mass_histogram"}
        groups = {name: value for name, value in shown.items() if is_grouped(value)}
        rows = scalar_rows({name: value for name, value in shown.items() if name not in groups})
        if rows:
            summary = f"All {len(rows)} figures" if len(rows) > _SHORT else ""
            yield Table(("figure", "value"), rows, summary=summary)
        for group in groups.values():
            yield Table(*group_columns(group))
        if not rows and not groups:
            yield Text(f"{stage} left no figures.")


def _cards(projected: dict[str, Any]) -> Iterator[Card]:
    for key, label, note in (
        ("mean_topk_mass", "top-K mass", f"of the teacher's probability, K = {projected.get('k', '?')}"),
        ("mean_other_mass", "other mass", "in one bucket for all other tokens"),
        ("kd_coverage", "coverage", "of the response's positions have a KD target"),
        ("struct_share", "structural tokens", "of the response's positions"),
    ):
        if isinstance(projected.get(key), int | float):
            yield Card(label, percent(projected[key]), note)
    if isinstance(projected.get("kd_positions"), int):
        yield Card("KD positions", number(projected["kd_positions"]), f"{number(projected.get('documents'))} documents")


def _other_mass(histogram: Any) -> Bars | None:
    if not isinstance(histogram, dict):
        return None
    edges, counts = histogram.get("edges"), histogram.get("counts")
    if not isinstance(edges, list) or not isinstance(counts, list) or len(edges) != len(counts) + 1:
        return None
    if not all(isinstance(each, int | float) for each in (*edges, *counts)) or not sum(counts):
        return None
    return Bars(
        title="Mass outside the top K",
        x_label="P(other), %",
        y_label="share of KD positions",
        edges=tuple(f"{100 * edge:.4g}" for edge in edges),
        values=tuple(count / sum(counts) for count in counts),
    )
