"""`bitnet dry-run`: predict a model's memory, measure it where it fits, and print what fits where."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bitnet_cli.commands.shared_options import manifest_options
from bitnet_cli.errors import UserError, library_errors

if TYPE_CHECKING:
    from rich.console import Console

    from bitnet_cli.report.blocks import Table


@click.command("dry-run", short_help="Predict how much memory a model takes; measure it if it fits.")
@manifest_options
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def dry_run_command(manifest: Path, overrides: tuple[str, ...], env_file: Path | None, as_json: bool) -> None:
    """Predict how much memory the model of [dry_run] in MANIFEST takes, and measure it where it fits.

    Prints the report and writes nothing; the stage dry_run writes it into the run folder.

    \b
    Examples:
      bitnet dry-run manifests/7b-dry-run.toml
      bitnet dry-run manifests/7b-dry-run.toml --set dry_run.context=8192 --set dry_run.batch_size=4
    """
    with library_errors():
        from bitnet_cli.manifest.load import open_manifest

        config = open_manifest(manifest, overrides, env_file).manifest.dry_run
        if config is None:
            raise UserError("bitnet dry-run needs a [dry_run] table in the manifest", "add one; an empty one is for 7B")
        from bitnet_core.dry_run.predict_and_measure import dry_run

        report = dry_run(config, lambda done, total, note: click.echo(f"dry run {done}/{total}: {note}", err=True))
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        show_report(report)


def show_report(report: dict[str, Any]) -> None:
    from bitnet_cli.report.blocks import Heading, Table, Text, plain
    from bitnet_cli.report.sections.dry_run import dry_run_blocks
    from bitnet_cli.reporter.terminal import open_console

    console = open_console()
    for block in dry_run_blocks(report):
        if isinstance(block, Table):
            _print_table(block, console)
        elif isinstance(block, Heading | Text):
            console.print(plain(block.text), highlight=False, markup=False)


def _print_table(block: "Table", console: "Console") -> None:
    from rich import box
    from rich.table import Table as RichTable

    from bitnet_cli.report.blocks import plain

    table = RichTable(box=box.SIMPLE)
    for index, name in enumerate(block.header):
        table.add_column(name, justify="right" if block.numeric and index else "left")
    for row in block.rows:
        table.add_row(*map(plain, row))
    console.print(table)
