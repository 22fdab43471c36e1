"""How near the student was to its checkpoint before any training: the calibration's own figures, and the KL then."""

from collections.abc import Iterator

from bitnet_cli.report.blocks import Block, Figure, Heading, Table, Text
from bitnet_cli.report.charts.chart_data import Line, Lines, drawable
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
