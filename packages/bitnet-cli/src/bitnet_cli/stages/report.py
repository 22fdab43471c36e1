"""report: what the run folder holds, for people. The stages before know nothing of it."""

from typing import Any

from bitnet_cli.manifest.stages import REPORT
from bitnet_cli.stage import Context, Stage
from bitnet_cli.stages import names


def run(context: Context) -> dict[str, Any]:
    from bitnet_cli.report import write_report

    return {"headline": write_report(context.folder)}


STAGE = Stage(
    facts=REPORT,
    run=run,
    reads_if_there=(
        names.STORAGE,
        names.BASELINE,
        names.RAW,
        names.TRACES,
        names.CHECKPOINTS,
        names.METRICS,
        names.EVALUATION,
        names.EXPORT,
    ),
    writes=(names.REPORT, names.REPORT_HTML),
    formats={"report": 1},
)
