"""The report of a run: ``report.md`` and ``report.html``, from what its folder holds and nothing else.

The verdict comes first, then the figures behind it, then how they came about.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from bitnet_cli import run_folder
from bitnet_cli.errors import UserError
from bitnet_cli.report.blocks import Block, Heading, Text, plain, readable
from bitnet_cli.report.charts.svg import draw_figures
from bitnet_cli.report.html import to_html
from bitnet_cli.report.markdown import to_markdown
from bitnet_cli.report.read_run import RunRecord, read_run
from bitnet_cli.report.sections.benchmarks import benchmark_blocks
from bitnet_cli.report.sections.calibration_error import calibration_blocks
from bitnet_cli.report.sections.dry_run import dry_run_blocks
from bitnet_cli.report.sections.exports import export_blocks
from bitnet_cli.report.sections.key_facts import fact_blocks
from bitnet_cli.report.sections.provenance import cite_blocks, provenance_blocks, settings_blocks
from bitnet_cli.report.sections.quality_efficiency import efficiency_blocks
from bitnet_cli.report.sections.samples import sample_blocks
from bitnet_cli.report.sections.simplest_models import simplest_model_blocks
from bitnet_cli.report.sections.teacher import teacher_quantised_blocks
from bitnet_cli.report.sections.ternary_codes import codes_blocks
from bitnet_cli.report.sections.traces import trace_blocks
from bitnet_cli.report.sections.training import calibrated_start_blocks, training_blocks
from bitnet_cli.report.sections.verdict import at_a_glance, no_evaluation, verdict
from bitnet_cli.report.sections.warnings_and_notes import notice_blocks
from bitnet_cli.wording.hide_secrets import printable


def write_report(folder: Path) -> str:
    """Write both reports and the figures of the first; returns the verdict in one line.

    What isn't there yet is said, not guessed; a run that is still at work has a report as well.
    """
    run = read_run(folder)
    blocks = report_blocks(run)
    for name, image in draw_figures(blocks).items():
        run_folder.write_text(folder / "reports" / "figures" / f"{name}.svg", printable(image))
    run_folder.write_text(folder / "report.md", printable(to_markdown(blocks)))
    run_folder.write_text(folder / "report.html", printable(to_html(blocks)))
    return next(plain(block.text) for block in readable(lambda: [Text(verdict(run))]) if isinstance(block, Text))


def write_reports(folders: Sequence[Path], out: Path) -> tuple[str, Path]:
    """One run's report again, or the comparison of several in `out`: it in a line, and its file.

    Raises UserError for no run folder, and where it can't write.
    """
    for folder in folders:
        if not run_folder.is_run_folder(folder):
            inside = sorted(filter(run_folder.is_run_folder, folder.iterdir())) if folder.is_dir() else []
            runs = ", ".join(map(str, inside[:10]))
            fix = f"name one of {runs}" if runs else "name one that `bitnet run` made, e.g. runs/quickstart"
            raise UserError(f"{folder} is no run folder", fix)
    try:
        if len(folders) == 1:
            return write_report(folders[0]), folders[0] / run_folder.REPORT_HTML
        from bitnet_cli.report.compare_runs import write_comparison

        return write_comparison(folders, out), out
    except OSError as error:
        place = folders[0] if len(folders) == 1 else out.absolute().parent
        raise UserError(f"the report can't be written: {error}", f"make {place} writable") from error


def report_blocks(run: RunRecord) -> list[Block]:
    """Every section of the report, in the order in which a reader wants them."""
    sections: tuple[Callable[[], Iterable[Block]], ...] = (
        lambda: [Text(verdict(run), strong=True)],
        lambda: fact_blocks(run),
        lambda: at_a_glance(run),
        lambda: simplest_model_blocks(run, no_evaluation(run)),
        lambda: efficiency_blocks(run),
        lambda: teacher_quantised_blocks(run),
        lambda: benchmark_blocks(run.evaluation),
        lambda: export_blocks(run),
        lambda: calibrated_start_blocks(run),
        lambda: training_blocks(run),
        lambda: trace_blocks(run),
        lambda: codes_blocks(run),
        lambda: calibration_blocks(run),
        lambda: sample_blocks(run),
        lambda: dry_run_blocks(run.dry_run),
        lambda: settings_blocks(run),
        lambda: provenance_blocks(run),
        lambda: cite_blocks(run),
        lambda: notice_blocks(run),
    )
    return [
        Heading(f"BitNet KDE: {run.name}", level=1),
        *(block for section in sections for block in readable(section)),
    ]
