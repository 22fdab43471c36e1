"""What a report says, section by section: the verdict first, then the figures behind it, then how they came about."""

from collections.abc import Callable, Iterable

from bitnet_cli.report.blocks import Block, Heading, Text, readable
from bitnet_cli.report.read_run import RunRecord
from bitnet_cli.report.sections.benchmarks import benchmark_blocks
from bitnet_cli.report.sections.calibrated_start import calibrated_start_blocks
from bitnet_cli.report.sections.calibration_error import calibration_blocks
from bitnet_cli.report.sections.citation import cite_blocks
from bitnet_cli.report.sections.dry_run import dry_run_blocks
from bitnet_cli.report.sections.exports import export_blocks
from bitnet_cli.report.sections.key_facts import fact_blocks
from bitnet_cli.report.sections.provenance import provenance_blocks
from bitnet_cli.report.sections.quality_efficiency import efficiency_blocks
from bitnet_cli.report.sections.samples import sample_blocks
from bitnet_cli.report.sections.settings import settings_blocks
from bitnet_cli.report.sections.simplest_models import simplest_model_blocks
from bitnet_cli.report.sections.teacher_quantised import teacher_quantised_blocks
from bitnet_cli.report.sections.ternary_codes import codes_blocks
from bitnet_cli.report.sections.traces import trace_blocks
from bitnet_cli.report.sections.training import training_blocks
from bitnet_cli.report.sections.verdict import at_a_glance, no_evaluation, verdict
from bitnet_cli.report.sections.warnings_and_notes import notice_blocks


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
