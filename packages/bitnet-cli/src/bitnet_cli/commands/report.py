"""`bitnet report`: one run's report again, or several runs in one page."""

from collections.abc import Sequence
from pathlib import Path

import click

from bitnet_cli.commands import option_suggestions
from bitnet_cli.errors import UserError, user_errors


@click.command("report", short_help="Write a run's report again, or compare several runs.")
@click.argument(
    "run_folders",
    metavar="RUN...",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path),
    shell_complete=option_suggestions.run_folder,
)
@click.option(
    "--out",
    default="comparison.html",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Where to write the comparison of several runs.",
)
def report_command(run_folders: tuple[Path, ...], out: Path) -> None:
    """Write report.md and report.html of the run folder RUN, from what is there; the run may still be at work.

    Of several runs, write one page that compares them.

    \b
    Examples:
      bitnet report runs/quickstart
      bitnet report runs/short runs/long                   → comparison.html
      bitnet report runs/* --out all.html
    """
    with user_errors():
        said, file = write(run_folders, out)
    click.echo(said)
    click.echo(f"report: {file}")


def write(folders: Sequence[Path], out: Path) -> tuple[str, Path]:
    """The report in a line, and its file. Raises UserError for no run folder, and where it can't write."""
    from bitnet_cli.run_folder import REPORT_HTML, is_run_folder

    for folder in folders:
        if not is_run_folder(folder):
            inside = sorted(filter(is_run_folder, folder.iterdir())) if folder.is_dir() else []
            runs = ", ".join(map(str, inside[:10]))
            fix = f"name one of {runs}" if runs else "name one that `bitnet run` made, e.g. runs/quickstart"
            raise UserError(f"{folder} is no run folder", fix)
    try:
        if len(folders) == 1:
            from bitnet_cli.report import write_report

            return write_report(folders[0]), folders[0] / REPORT_HTML
        from bitnet_cli.report.compare_runs import write_comparison

        return write_comparison(folders, out), out
    except OSError as error:
        place = folders[0] if len(folders) == 1 else out.absolute().parent
        raise UserError(f"the report can't be written: {error}", f"make {place} writable") from error
