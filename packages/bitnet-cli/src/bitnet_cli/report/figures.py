"""The report's pictures, from the rows of ``logs/metrics.jsonl``."""

import io
import itertools
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bitnet_cli.report.read import RunRecord

Point = tuple[float, float]
_LINES = {"loss": "#1f5fa8", "kd": "#e07b28", "ce": "#4b9b5f", "format": "#8a63b3"}


def draw_figures(run: RunRecord) -> dict[str, bytes]:
    """Name → PNG. A picture without data is left out."""
    figures: dict[str, bytes] = {}
    if series(run.metrics, "loss"):
        figures["loss"] = _loss(run)
    if series(run.metrics, "heldout_kl"):
        figures["validation"] = _validation(run)
    if series(run.metrics, "lr") or series(run.metrics, "tokens_per_second"):
        figures["training"] = _training(run)
    return figures


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


def _loss(run: RunRecord) -> bytes:
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    for key, colour in _LINES.items():
        points = series(run.metrics, key)
        if points and any(value for _, value in points):
            axes.plot(*zip(*points, strict=True), label=key, color=colour, linewidth=2 if key == "loss" else 1.2)
    _mark_flip(axes, run)
    axes.set(xlabel="step", ylabel="nats per token", title="Training loss")
    return _png(figure, axes)


def _validation(run: RunRecord) -> bytes:
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*zip(*series(run.metrics, "heldout_kl"), strict=True), "o-", label="student", color=_LINES["loss"])
    for key, colour in (("unigram_kl", "#888888"), ("bigram_kl", "#b05c5c")):
        value = run.evaluation.get(key)
        if isinstance(value, int | float):
            axes.axhline(value, color=colour, linestyle="--", linewidth=1, label=f"{key[:-3]} (all held-out documents)")
    _mark_flip(axes, run)
    axes.set(xlabel="step", ylabel="KL to the teacher, nats", title="Held-out KL while training")
    return _png(figure, axes)


def _training(run: RunRecord) -> bytes:
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    wanted = (("lr", "Learning rate"), ("tokens_per_second", "Tokens per second"), ("grad_norm", "Gradient norm"))
    shown = [(key, title) for key, title in wanted if series(run.metrics, key)]
    for position, (key, title) in enumerate(shown, start=1):
        axes = figure.add_subplot(1, len(shown), position)
        axes.plot(*zip(*series(run.metrics, key), strict=True), color=_LINES["loss"], linewidth=1.4)
        axes.set(xlabel="step", title=title)
        axes.grid(alpha=0.25)
    return _png(figure)


def _mark_flip(axes: Any, run: RunRecord) -> None:
    flip = flip_step(run.metrics)
    if flip is not None:
        axes.axvline(flip, color="#c0392b", linestyle=":", linewidth=1.5, label=f"A8 → A4 by step {flip}")


def _png(figure: Figure, axes: Any = None) -> bytes:
    if axes is not None:
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()
