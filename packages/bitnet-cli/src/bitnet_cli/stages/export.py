"""export: the checkpoint as files that others run."""

from pathlib import Path
from typing import Any

from bitnet_cli import run_folder
from bitnet_cli.exporting import export_facts
from bitnet_cli.manifest.stages import EXPORT
from bitnet_cli.stage import Context, Stage
from bitnet_cli.stages import names


def run(context: Context) -> dict[str, Any]:
    section = context.manifest.export
    assert section is not None
    exporters = {
        kind: context.plugins.require_exporter(kind).load(options) for kind, options in section.options.items()
    }
    from bitnet_core.export.folder import export
    from bitnet_core.model.checkpoint import latest_checkpoint

    report = export(
        latest_checkpoint(context.folder / "checkpoints"),
        exporters,
        context.folder / "exports",
        run=context.folder,
        facts=export_facts(context.folder),
        publish=not context.teacher.skip_external,
        on_progress=context.on_progress,
    )
    if context.teacher.skip_external and any(each.publish is not None for each in exporters.values()):
        context.say("SKIP_EXTERNAL=1: nothing was uploaded")
    run_folder.write_json(context.folder / names.EXPORT, report)
    sizes = [
        f"{name} {size / 1e6:.1f} MB" for name, entry in report["exports"].items() if (size := entry["bytes"]) > 5e4
    ]
    return {"headline": ", ".join(sizes)} | report


def result_files(folder: Path, name: str) -> list[Path]:
    """The report and the files that it lists: others in exports/ are none of the stage's business."""
    found = run_folder.find_files(folder, name)
    report = run_folder.read_json(folder / names.EXPORT)
    if name == names.EXPORT and isinstance(report, dict):
        for entry in report["exports"].values():
            found += [folder / "exports" / file for file in entry["files"]]
    return found


STAGE = Stage(
    facts=EXPORT,
    run=run,
    reads=(names.CHECKPOINTS,),
    reads_if_there=(names.BASELINE, names.EVALUATION),
    writes=(names.EXPORT,),
    find=result_files,
    formats={"checkpoint": 1, "exports": 1},
)
"""`exports/` is not among `writes`, which are set aside when a stage is redone: nobody else's file may be touched."""
