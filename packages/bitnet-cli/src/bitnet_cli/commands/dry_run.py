"""`bitnet dry-run`: predict a model's memory, measure it where it fits, and print what fits where."""

import json
from typing import TYPE_CHECKING

import click

from bitnet_cli.commands.traces import library_errors
from bitnet_cli.errors import UserError
from bitnet_cli.report.blocks import Heading, Table, Text
from bitnet_cli.report.dry_run import dry_run_blocks

if TYPE_CHECKING:
    from rich.console import Console

    from bitnet_cli.manifest import Manifest


def dry_run_command(manifest: "Manifest", console: "Console", *, as_json: bool) -> None:
    """Prints the report; writes nothing (the stage dry_run does). Raises UserError."""
    if manifest.dry_run is None:
        raise UserError("bitnet dry-run needs a [dry_run] table in the manifest: add one, e.g. an empty one for 7B")

    def tell(done: int, total: int, note: str) -> None:
        click.echo(f"dry run {done}/{total}: {note}", err=True)

    with library_errors():
        from bitnet_core.dry_run.dry_run import dry_run

        report = dry_run(manifest.dry_run, tell)
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    for block in dry_run_blocks(report):
        if isinstance(block, Table):
            _print_table(block, console)
        elif isinstance(block, Heading | Text):
            console.print(block.text, highlight=False, markup=False)


def _print_table(block: Table, console: "Console") -> None:
    from rich import box
    from rich.table import Table as RichTable

    table = RichTable(box=box.SIMPLE)
    for index, name in enumerate(block.header):
        table.add_column(name, justify="right" if block.numeric and index else "left")
    for row in block.rows:
        table.add_row(*row)
    console.print(table)
