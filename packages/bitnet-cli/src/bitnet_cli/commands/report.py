"""`bitnet report`: one run's report again, or several runs in one page."""

from collections.abc import Sequence
from pathlib import Path

import click

from bitnet_cli.errors import UserError
from bitnet_cli.run_folder import is_run_folder


def report_command(folders: Sequence[Path], out: Path) -> None:
    """Write it and say what it says. Raises UserError for what is no run folder, and where nothing can be written."""
    for folder in folders:
        if not is_run_folder(folder):
            inside = sorted(filter(is_run_folder, folder.iterdir())) if folder.is_dir() else []
            runs = ", ".join(map(str, inside[:10]))
            fix = f"name one of {runs}" if runs else "name one that `bitnet run` made, e.g. runs/quickstart"
            raise UserError(f"{folder} is no run folder  → {fix}")
    try:
        if len(folders) == 1:
            from bitnet_cli.report import write_report

            said, file = write_report(folders[0]), folders[0] / "report.md"
        else:
            from bitnet_cli.report.compare import write_comparison

            said, file = write_comparison(folders, out), out
    except OSError as error:
        place = folders[0] if len(folders) == 1 else out.absolute().parent
        raise UserError(f"the report can't be written: {error}  → make {place} writable") from error
    click.echo(said)
    click.echo(f"report: {file}")
