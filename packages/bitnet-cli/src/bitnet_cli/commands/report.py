"""`bitnet report`: one run's report again, or several runs in one page."""

from pathlib import Path

import click

from bitnet_cli.commands import completion
from bitnet_cli.errors import user_errors


@click.command("report", short_help="Write a run's report again, or compare several runs.")
@click.argument(
    "run_folders",
    metavar="RUN...",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path),
    shell_complete=completion.run_folder,
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
        from bitnet_cli.report.write_report import write_reports

        said, file = write_reports(run_folders, out)
    click.echo(said)
    click.echo(f"report: {file}")
