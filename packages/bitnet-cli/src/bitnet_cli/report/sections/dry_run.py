"""The dry run's figures, as a report and `bitnet dry-run` show them."""

from collections.abc import Iterator, Mapping
from typing import Any

from bitnet_cli.report.blocks import Block, Heading, Table, Text
from bitnet_cli.report.number_format import bytes_text, number

_PHASES = {
    "load": "load",
    "prefill": "prefill",
    "decode": "decode",
    "train_a8": "train, A8",
    "train_a4": "train, A4",
}


def dry_run_blocks(report: Mapping[str, Any]) -> Iterator[Block]:
    """Nothing where no dry run has been made."""
    if not isinstance(report.get("phases"), Mapping) or not isinstance(report.get("model"), Mapping):
        return
    yield Heading("Dry run: memory")
    yield Text(_summary(report))
    yield phase_table(report)
    yield Heading("What fits where", level=3)
    sizes = ", ".join(map(str, report.get("gpu_sizes_gb") or ()))
    yield Text(
        f"By formula, on each GPU, of {sizes} GB; a GPU counts as 95 % of its size. ckpt: gradient checkpointing. "
        "Several GPUs share parameters, gradients and moments (FSDP)."
    )
    yield fits_table(report)
    yield from _communication(report)
    yield from _deployed(report)


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
    header = ("phase", "formula", "fake tensors", "differ", "measured", "formula off", "fakes off")
    return Table(header, tuple(rows))


def fits_table(report: Mapping[str, Any]) -> Table:
    rows = [
        (
            f"{row['use']}, {row['batch_size']} × {row['context']}",
            row["optimizer"] or "",
            {True: "yes", False: "no", None: ""}[row["gradient_checkpointing"]],
            str(row["devices"]),
            bytes_text(row["bytes_per_device"]),
            _fits(row),
        )
        for row in report.get("what_fits") or ()
    ]
    return Table(
        ("use, batch × context", "optimizer", "ckpt", "GPUs", "each takes", "fits"), tuple(rows), numeric=False
    )


def _communication(report: Mapping[str, Any]) -> Iterator[Block]:
    """What several GPUs send each other; nothing of a report of before that was told."""
    rows = [row for row in report.get("communication") or () if isinstance(row, Mapping) and row.get("seconds")]
    if not rows:
        return
    yield Heading("What GPUs send each other", level=3)
    yield Text(
        "Bytes that each sends for a micro-batch, parameters gathered and gradients scattered, and the seconds that "
        "takes if none of it happens while the GPU computes. A link that several GPUs share gives each a part."
    )
    header = ("GPUs", "parameters", "gradients", *rows[0]["seconds"])
    yield Table(header, tuple(map(_sent_row, rows)))


def _sent_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    sent = (bytes_text(row.get(name)) for name in ("all_gather_bytes", "reduce_scatter_bytes"))
    return str(row.get("devices")), *sent, *(f"{seconds:.2f} s" for seconds in row["seconds"].values())


def _deployed(report: Mapping[str, Any]) -> Iterator[Block]:
    """What people run; nothing of a report of before that was told."""
    rows = [row for row in report.get("deployed") or () if isinstance(row, Mapping) and row.get("contexts")]
    if rows:
        batch = report["model"].get("batch_size") or 1
        yield Heading("As deployed", level=3)
        yield Text(
            "Weights, and with the cache of keys and values of so many positions: the checkpoint in torch (float32 "
            "masters and their quantised copy), packed in the CPU's runtime (a float32 cache), GGUF in llama.cpp "
            f"(float16); {batch} sequence{'s' * (batch > 1)}. Activations of one pass come on top, some MB to some "
            f"hundred. What fits is at {number(report['model'].get('context'))} positions."
        )
        contexts = [each["context"] for each in rows[0]["contexts"]]
        header = ("form", "weights", *(f"at {number(each)}" for each in contexts), "fits")
        yield Table(header, tuple(map(_deployed_row, rows)), numeric=False)
    start = report.get("calibrated_start")
    if isinstance(start, Mapping):
        yield Heading("Calibrated start", level=3)
        yield Text(
            f"A layer at a time: at most {bytes_text(start.get('peak_bytes'))} of memory by formula, and "
            f"{bytes_text(start.get('disk_bytes'))} on the disk for {number(start.get('tokens'))} tokens."
        )


def _deployed_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    totals = (bytes_text(each.get("total_bytes")) for each in row["contexts"])
    return str(row["form"]), bytes_text(row.get("weights_bytes")), *totals, _fits(row)


def _fits(row: Mapping[str, Any]) -> str:
    return f"from {min(row['fits_gb'])} GB up" if row.get("fits_gb") else "none of them"


def percent(value: Any) -> str:
    return f"{100 * value:+.1f} %" if isinstance(value, int | float) else "–"
