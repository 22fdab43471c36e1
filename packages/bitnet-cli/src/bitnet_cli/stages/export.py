"""export: the checkpoint as files that others run; `bitnet export` shares the model card's facts."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from bitnet_cli import run_folder
from bitnet_cli.errors import Problem, UserError
from bitnet_cli.manifest.stage_needs import EXPORT
from bitnet_cli.run_folder import is_run_folder
from bitnet_cli.stages import tokenizer_and_start
from bitnet_cli.stages.stage import Context, Stage

if TYPE_CHECKING:
    from bitnet_cli.manifest import Manifest
    from bitnet_cli.plugins.catalog import Plugins


@attrs.frozen
class Source:
    """What ``CKPT`` on a command line stands for."""

    checkpoint: Path
    run: Path | None
    """The run folder that it lies in, if it lies in one."""


def require_folder(place: Path) -> None:
    """Raises UserError where `place` is no folder; quick, and needs no torch."""
    if not place.is_dir():
        raise UserError(
            f"{place}: no such folder", "name a run folder, e.g. runs/quickstart, or one of its checkpoints"
        )


def find_source(place: Path) -> Source:
    """A run folder stands for its latest checkpoint. Raises UserError where there is no such folder."""
    require_folder(place)
    if is_run_folder(place) or (place / "checkpoints").is_dir():
        from bitnet_core.model.choose_checkpoint import latest_checkpoint

        return Source(latest_checkpoint(place / "checkpoints"), place)
    run = place.resolve().parent.parent
    inside = place.resolve().parent.name == "checkpoints" and is_run_folder(run)
    return Source(place, run if inside else None)


def export_facts(run: Path) -> dict[str, Any]:
    """The run's name, teacher and evaluation; an evaluation of an older training is left out."""
    from bitnet_cli.report.read_run import read_run

    record = read_run(run)
    teacher = (record.baseline.get("teacher") or {}).get("model")
    return {"name": record.name, "teacher": teacher, "evaluation": record.evaluation}


def run(context: Context) -> dict[str, Any]:
    section = context.manifest.export
    assert section is not None
    exporters = {
        kind: context.plugins.require_exporter(kind).load(options) for kind, options in section.options.items()
    }
    from bitnet_core.export.folder import export
    from bitnet_core.model.choose_checkpoint import latest_checkpoint

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
        context.notify("SKIP_EXTERNAL=1: nothing was uploaded")
    run_folder.write_json(context.folder / run_folder.EXPORT, report)
    sizes = [
        f"{name} {size / 1e6:.1f} MB" for name, entry in report["exports"].items() if (size := entry["bytes"]) > 5e4
    ]
    return {"headline": ", ".join(sizes)} | report


def check(manifest: "Manifest", plugins: "Plugins") -> Iterator[Problem]:
    """Exports that know no student of another architecture than Llama's."""
    assert manifest.export is not None
    for kind in manifest.export.options:
        if kind in ("packed", "gguf"):
            yield from tokenizer_and_start.only_llama(manifest, f"the export {kind}", 'set export.kinds = ["hf"]')


def result_files(folder: Path, name: str) -> list[Path]:
    """The report and the files that it lists: others in exports/ are none of the stage's business."""
    found = run_folder.find_files(folder, name)
    report = run_folder.read_json(folder / run_folder.EXPORT)
    if name == run_folder.EXPORT and isinstance(report, dict):
        for entry in report["exports"].values():
            found += [folder / "exports" / file for file in entry["files"]]
    return found


STAGE = Stage(
    facts=EXPORT,
    run=run,
    reads=(run_folder.CHECKPOINTS,),
    reads_if_there=(run_folder.BASELINE, run_folder.EVALUATION),
    writes=(run_folder.EXPORT,),
    find=result_files,
    check=check,
    formats={"checkpoint": 1, "exports": 1},
)
"""`exports/` is not among `writes`, which are set aside when a stage is redone: nobody else's file may be touched."""
