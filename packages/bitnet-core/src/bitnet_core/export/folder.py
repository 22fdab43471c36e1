"""The folder of exports: each written under another name and renamed, nothing of anybody else's overwritten.

``exports.json`` says what was made here and from which run; only that is ever replaced without being told to.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bitnet_core.errors import CoreError
from bitnet_core.export.load_student import load_student
from bitnet_core.files import write_json
from bitnet_core.hookspecs import Exporter

RECORD = "exports.json"
RECORD_FORMAT = 1


def export(
    checkpoint: Path,
    exporters: Mapping[str, Exporter],
    out: Path,
    *,
    run: Path | None = None,
    facts: Mapping[str, Any] | None = None,
    force: bool = False,
    publish: bool = True,
    on_progress: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> dict[str, Any]:
    """Write every exporter's targets into `out`; returns ``{"checkpoint": ..., "exports": {target: figures}}``.

    `run` is the run folder that the checkpoint belongs to. A target that is there already is replaced if `out` says
    that it came from the same run, or with `force`. `publish` False keeps everything on this machine.

    Raises:
        CoreError: what can't be exported, or would overwrite something else; nothing was changed then.
    """
    source = run if run is not None else checkpoint
    known = _read_record(out)
    _check_targets(exporters, out, source, known, force)
    student = load_student(checkpoint, facts, run / "data" if run is not None else None)
    report: dict[str, Any] = {}
    for number, (kind, exporter) in enumerate(exporters.items()):
        on_progress(number, len(exporters), kind)
        partial = out / f".{kind}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            figures = dict(exporter.write(student, partial))
            _flush(partial)
            for target in exporter.targets:
                _move(partial / target, out / target)
                size, files = _size(out / target)
                known[target] = {"kind": kind, "run": _relative(source, out), "checkpoint": checkpoint.name}
                report[target] = {"kind": kind, "bytes": size, "files": files} | figures.get(target, {})
            write_json(out / RECORD, {"format": RECORD_FORMAT, "exports": known})
        except OSError as error:
            raise CoreError(
                f"{out}: the {kind} export can't be written ({error})",
                "free some space there, or choose another folder",
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        if publish and exporter.publish is not None:
            report[exporter.targets[0]]["published"] = exporter.publish(out)
    on_progress(len(exporters), len(exporters), "")
    return {"checkpoint": checkpoint.name, "exports": report}


def _check_targets(
    exporters: Mapping[str, Exporter], out: Path, source: Path, known: Mapping[str, Any], force: bool
) -> None:
    makers: dict[str, str] = {}
    for kind, exporter in exporters.items():
        for target in exporter.targets:
            if target in makers:
                raise CoreError(
                    f"the exporters {makers[target]} and {kind} both make {target}", "leave one of them out"
                )
            makers[target] = kind
    for target in makers:
        place = out / target
        ours = known.get(target, {}).get("run") == _relative(source, out)
        if place.exists() and not ours and not force:
            raise CoreError(
                f"{place} is there already and is no earlier export of this run",
                "move it away, choose another folder (--out), or replace it with --force",
            )


def _read_record(out: Path) -> dict[str, Any]:
    """Target → where it came from; empty where nothing was exported yet, or the record is damaged."""
    try:
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
        found = record["exports"] if record["format"] == RECORD_FORMAT else {}
        return {name: entry for name, entry in found.items() if isinstance(entry, dict)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _relative(source: Path, out: Path) -> str:
    """Relative, so that a run folder that was moved still knows its own exports."""
    try:
        return Path(os.path.relpath(source.resolve(), out.resolve())).as_posix()
    except ValueError:  # another drive
        return source.resolve().as_posix()


def _move(made: Path, place: Path) -> None:
    """Rename `made` to `place`; a folder that is there goes out of the way first, and away after."""
    if not place.is_dir():
        made.replace(place)
        return
    old = place.with_name(f".{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    place.rename(old)
    try:
        made.rename(place)
    except OSError:
        old.rename(place)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _flush(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())


def _size(place: Path) -> tuple[int, list[str]]:
    """Bytes, and the files relative to the exports' folder."""
    files = sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]
    return sum(path.stat().st_size for path in files), [path.relative_to(place.parent).as_posix() for path in files]
