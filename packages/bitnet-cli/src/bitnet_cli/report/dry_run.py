"""The dry run's figures, as a report and `bitnet dry-run` show them."""

from collections.abc import Iterator, Mapping
from typing import Any

from bitnet_cli.report.blocks import Block, Heading, Table, Text
from bitnet_cli.report.words import bytes_text

_PHASES = {
    "load": "load",
    "prefill": "prefill",
    "decode": "decode at the full context",
    "train_a8": "train, first step (A8)",
    "train_a4": "train, after the flip (A4)",
}


def dry_run_blocks(report: Mapping[str, Any]) -> Iterator[Block]:
    """Nothing where no dry run has been made."""
    if not isinstance(report.get("phases"), Mapping) or not isinstance(report.get("model"), Mapping):
        return
    yield Heading("Dry run: memory")
    yield Text(_summary(report))
    yield phase_table(report)
    yield Heading("What fits where", level=3)
    yield Text("By formula, on each GPU; a GPU counts as 95 % of its size.")
    yield fits_table(report)


def _summary(report: Mapping[str, Any]) -> str:
    model = report["model"]
    text = (
        f"A student of {report.get('parameters', 0) / 1e9:.2f} B parameters, batch {model.get('batch_size')}, context "
        f"{model.get('context')}, {model.get('optimizer')}, gradient checkpointing "
        f"{'on' if model.get('gradient_checkpointing') else 'off'}, on {report.get('device')}. "
    )
    if report.get("measured"):
        return text + "Predicted and measured."
    return text + f"Predicted, not measured: {report.get('not_measured_because')}."


def phase_table(report: Mapping[str, Any]) -> Table:
    rows = [
        (
            _PHASES.get(name, name),
            bytes_text(phase.get("formula_bytes")),
            bytes_text(phase.get("fake_tensor_bytes")),
            percent(phase.get("formula_over_fake")),
            bytes_text(phase.get("measured_bytes")),
            percent(phase.get("formula_error")),
            percent(phase.get("fake_tensor_error")),
        )
        for name, phase in report["phases"].items()
    ]
    header = ("phase", "formula", "fake tensors", "formula off fake", "measured", "formula off", "fake off")
    return Table(header, tuple(rows))


def fits_table(report: Mapping[str, Any]) -> Table:
    rows = [
        (
            f"{row['use']}, batch {row['batch_size']}, context {row['context']}",
            row["optimizer"] or "",
            {True: "yes", False: "no", None: ""}[row["gradient_checkpointing"]],
            str(row["devices"]),
            bytes_text(row["bytes_per_device"]),
            ", ".join(f"{size} GB" for size in row["fits_gb"]) or "none of them",
        )
        for row in report.get("what_fits") or ()
    ]
    return Table(("use", "optimizer", "checkpointing", "GPUs", "each takes", "fits in"), tuple(rows), numeric=False)


def percent(value: Any) -> str:
    return f"{100 * value:+.1f} %" if isinstance(value, int | float) else "–"
