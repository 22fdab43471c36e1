"""dry_run: how much memory a model takes, predicted, and measured where it fits."""

from typing import Any

from bitnet_cli import run_folder
from bitnet_cli.manifest.stage_needs import DRY_RUN
from bitnet_cli.report.number_format import bytes_text
from bitnet_cli.stages.stage import Context, Stage


def run(context: Context) -> dict[str, Any]:
    section = context.manifest.dry_run
    assert section is not None
    from bitnet_core.dry_run.predict_and_measure import dry_run

    report = dry_run(section, context.on_progress)
    run_folder.write_json(context.folder / run_folder.DRY_RUN, report)
    peak = max(phase["measured_bytes"] or phase["formula_bytes"] for phase in report["phases"].values())
    how = "measured" if report["measured"] else f"predicted, not measured: {report['not_measured_because']}"
    return {
        "headline": f"{report['parameters'] / 1e9:.2f} B parameters, peak {bytes_text(peak)}; {how}",
        "peak_bytes": peak,
        "measured": report["measured"],
    }


STAGE = Stage(facts=DRY_RUN, run=run, writes=(run_folder.DRY_RUN,))
