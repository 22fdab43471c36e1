"""The training: how near a calibrated start was before it, and its curves, from the rows of ``logs/metrics.jsonl``."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from bitnet_cli.report.blocks import Block, Figure, Heading, Table, Text
from bitnet_cli.report.charts.axes import wants_log
from bitnet_cli.report.charts.chart_data import GREY, Line, Lines, Mark, Point, drawable, thin
from bitnet_cli.report.number_format import number
from bitnet_cli.report.read_run import RunRecord


def calibrated_start_blocks(run: RunRecord) -> Iterator[Block]:
    """Nothing where the start was not calibrated."""
    found = run.calibration.get("layers")
    layers = [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []
    points = tuple(
        (each["layer"], each["stream_error"])
        for each in layers
        if drawable(each.get("layer")) and drawable(each.get("stream_error"))
    )
    if not points:
        return
    yield Heading("Calibrated start")
    yield Text(
        "Before training, codes and scales were chosen layer by layer so that the student puts out what its "
        f"checkpoint does, on {number(run.calibration.get('tokens'))} tokens of training text. The curve is the "
        "squared distance of the two residual streams after each layer, of the checkpoint's own square."
    )
    chart = Lines(title="Error of the stream", x_label="layer", y_label="relative", lines=(Line("student", points),))
    yield Figure("calibrated_start", "The student's residual stream against its checkpoint's.", (chart,))
    where = run.evaluation.get("split", "held-out")
    rows = [
        (
            f"{where} KL untrained, nats per token",
            number(run.evaluation.get("untrained_kl")),
        ),
        ("relative error after the last layer", number(points[-1][1])),
        ("tokens", number(run.calibration.get("tokens"))),
        ("documents", number(run.calibration.get("documents"))),
        ("CPU seconds", number(run.calibration.get("cpu_seconds"))),
    ]
    yield Table(("figure", "value"), tuple(row for row in rows if row[1] != "–"))


PARTS = ("loss", "kd", "ce", "format", "hidden", "relation")
RATES = (
    ("lr", "Learning rate", ""),
    ("grad_norm", "Gradient norm", "before clipping"),
    ("tokens_per_second", "Speed", "tokens per second"),
)

_LINEAR = ("Learning rate", "Speed")
"""Charts whose shape is known on a linear axis."""


def training_blocks(run: RunRecord) -> Iterator[Block]:
    yield Heading("Training")
    if not run.metrics:
        yield Text("Training curves: not there yet: train has not run.")
        return
    flip = flip_step(run.metrics)
    flipped = f"activations went from 8 to 4 bits by step {flip}" if flip else "activations kept their bits throughout"
    if series(run.metrics, "loss"):
        yield Figure("loss", f"Training loss and its parts; {flipped}.", (_loss(run),))
    if series(run.metrics, "validation_kl"):
        where = run.evaluation.get("split", "held-out")
        caption = f"KL on the validation documents while training; of the n-grams on all {where} documents."
        yield Figure("validation", caption, (validation_chart(run),))
    if rates := tuple(_rates(run)):
        yield Figure("training", "Learning rate, gradient norm before clipping, tokens per second.", rates)
    first, last = run.metrics[0], run.metrics[-1]
    keys = [key for key in (*PARTS, "validation_kl", "grad_norm", "lr", "bits", "seen_tokens") if key in last]
    rows = tuple((key, number(first.get(key)), number(last.get(key))) for key in keys)
    yield Table(("figure", f"step {first['step']}", f"step {last['step']}"), rows)


def series(rows: list[dict[str, Any]], key: str) -> list[Point]:
    """(step, value) where the row has a number for `key`."""
    return [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float)]


def flip_step(rows: list[dict[str, Any]]) -> int | None:
    """The first logged step at 4-bit activations after 8-bit ones; None: no flip."""
    bits = series(rows, "bits")
    for (_, before), (step, after) in itertools.pairwise(bits):
        if before == 8 and after == 4:
            return int(step)
    return None


def flip_mark(run: RunRecord) -> tuple[Mark, ...]:
    flip = flip_step(run.metrics)
    return () if flip is None else (Mark(flip, "A8 → A4"),)


def _loss(run: RunRecord) -> Lines:
    found = [(key, series(run.metrics, key)) for key in PARTS]
    lines = tuple(
        Line(key, thin(points), PARTS.index(key)) for key, points in found if any(value for _, value in points)
    )
    return chart("Training loss", "nats per token", lines, flip_mark(run))


def validation_chart(run: RunRecord) -> Lines:
    student = Line("student", thin(series(run.metrics, "validation_kl")), dots=True)
    ends = (run.metrics[0]["step"], run.metrics[-1]["step"])
    limits = tuple(
        Line(key[:-3], tuple((step, value) for step in ends), GREY, dashed=key[0] == "u")
        for key in ("unigram_kl", "bigram_kl")
        if drawable(value := run.evaluation.get(key))
    )
    return chart("Validation KL", "nats to the teacher", (student, *limits), flip_mark(run))


def _rates(run: RunRecord) -> Iterator[Lines]:
    for key, title, unit in RATES:
        if points := thin(series(run.metrics, key)):
            yield chart(title, unit, (Line(title.lower(), points),), flip_mark(run))


def chart(title: str, unit: str, lines: Iterable[Line], marks: tuple[Mark, ...] = ()) -> Lines:
    """Over steps; on a logarithmic axis where losses or norms are far apart."""
    kept = tuple(line for line in lines if line.points)
    log = title not in _LINEAR and wants_log(value for line in kept for _, value in line.points)
    label = ", ".join(filter(None, (unit, "log scale" if log else "")))
    return Lines(title=title, x_label="step", y_label=label, lines=kept, marks=marks, log_y=log)
