"""Calibration: how often student and teacher are right, against how sure they are."""

from collections.abc import Iterator
from typing import Any

from bitnet_cli.report.blocks import Block, Figure, Heading, Text
from bitnet_cli.report.charts.chart_data import GREY, Bars, Line, Lines, drawable
from bitnet_cli.report.number_format import number
from bitnet_cli.report.read_run import RunRecord


def calibration_blocks(run: RunRecord) -> Iterator[Block]:
    """Nothing where the evaluation did not measure it."""
    heldout = run.evaluation.get("heldout") or {}
    student, teacher = (_sound(heldout.get(f"{owner}calibration")) for owner in ("", "teacher_"))
    if student is None:
        return
    yield Heading("Calibration")
    text = f"Expected calibration error: student {number(student['ece'])}"
    text += f", teacher {number(teacher['ece'])}." if teacher else "."
    yield Text(
        f"{text} It is the mean distance between how sure a model is of its likeliest token and how often that token "
        "is the one that stands there, over the held-out text. Below the diagonal a model is too sure of itself."
    )
    lines = [Line("perfect", ((0.0, 0.0), (1.0, 1.0)), GREY, dashed=True)]
    lines += [
        Line(name, tuple((each["confidence"], each["accuracy"]) for each in found["bins"]), colour, dots=True)
        for name, found, colour in (("student", student, 0), ("teacher", teacher, 1))
        if found
    ]
    yield Figure(
        "calibration",
        "Reliability of the likeliest token, and how often the student is how sure.",
        (
            Lines(
                title="Reliability", x_label="confidence", y_label="share that is right", lines=tuple(lines), unit=True
            ),
            _confidences(student),
        ),
    )


def _sound(found: Any) -> dict[str, Any] | None:
    """As the evaluation writes it; None for anything else."""
    if not isinstance(found, dict) or not drawable(found.get("ece")):
        return None
    bins, keys = found.get("bins"), ("from", "positions", "confidence", "accuracy")
    if not isinstance(bins, list) or not bins or not isinstance(found.get("bin_count"), int) or found["bin_count"] < 1:
        return None
    sound = all(isinstance(each, dict) and all(drawable(each.get(key)) for key in keys) for each in bins)
    return found if sound else None


def _confidences(found: dict[str, Any]) -> Bars:
    """The share of positions in each bin of the confidence, the empty ones included."""
    count = int(found["bin_count"])
    values = [0.0] * count
    total = sum(each["positions"] for each in found["bins"])
    for each in found["bins"]:
        values[min(count - 1, round(each["from"] * count))] += each["positions"] / total
    return Bars(
        title="Confidence of the student",
        x_label="confidence",
        y_label="share of positions",
        edges=tuple(f"{number / count:.2g}" for number in range(count + 1)),
        values=tuple(values),
    )
