"""The exported files: their sizes, and at how many bits their activations run."""

from collections.abc import Iterator
from typing import Any

from bitnet_cli.report.blocks import Block, Heading, Table, Text
from bitnet_cli.report.number_format import bytes_text, number
from bitnet_cli.report.read_run import RunRecord
from bitnet_cli.report.sections.key_facts import file_link
from bitnet_cli.report.sections.simplest_models import where


def export_blocks(run: RunRecord) -> Iterator[Block]:
    done = run.done.get("export")
    if done is None:
        return
    yield Heading("Exports")
    entries = done.summary.get("exports")
    entries = entries.items() if isinstance(entries, dict) else ()
    rows = tuple(
        (
            file_link(run, f"exports/{name}"),
            bytes_text(entry.get("bytes")),
            _runs_at(entry),
            str(entry.get("padded", "")),
        )
        for name, entry in entries
        if isinstance(entry, dict)
    )
    yield Table(("file", "size", "activations", "padded with zeros"), rows, numeric=False)
    at_8_bits = (run.evaluation.get("heldout_at_8_bits") or {}).get("kl")
    if at_8_bits is not None:
        yield Text(f"As deployed, at A8, the student's {where(run)} KL is {number(at_8_bits)} nats per token.")


def _runs_at(entry: dict[str, Any]) -> str:
    bits = entry.get("activation_bits")
    return "" if bits is None else "not quantised" if bits == 16 else f"A{bits}"
