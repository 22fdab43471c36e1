"""report: what the run folder holds, for people. The stages before know nothing of it."""

from typing import Any

from bitnet_cli import run_folder
from bitnet_cli.manifest.stage_needs import REPORT
from bitnet_cli.stages.stage import Context, Stage


def run(context: Context) -> dict[str, Any]:
    from bitnet_cli.report.write_report import write_report

    return {"headline": write_report(context.folder)}


STAGE = Stage(
    facts=REPORT,
    run=run,
    reads_if_there=(
        run_folder.STORAGE,
        run_folder.BASELINE,
        run_folder.RAW,
        run_folder.TRACES,
        run_folder.CALIBRATION,
        run_folder.CHECKPOINTS,
        run_folder.METRICS,
        run_folder.EVALUATION,
        run_folder.EXPORT,
    ),
    writes=(run_folder.REPORT, run_folder.REPORT_HTML),
    formats={"report": 1},
)
