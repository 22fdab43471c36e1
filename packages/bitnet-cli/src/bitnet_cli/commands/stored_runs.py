"""The runs that a store has: listed, looked into, compared (nothing is pulled for it), and checked digest by digest."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import tomli

from bitnet_cli import run_folder
from bitnet_cli.errors import UserError
from bitnet_cli.manifest.stage_needs import STAGES
from bitnet_cli.report.compare_runs import flat
from bitnet_cli.run_folder import Done
from bitnet_cli.wording.did_you_mean import did_you_mean
from bitnet_core.files import has_its_digest, sha256_of
from bitnet_storage.contract import DurableStore, ReadableStore, Snapshot, StorageError, Store
from bitnet_storage.names_and_paths import path_problem

SETTINGS_FILE = "manifest.resolved.toml"


_TIMED = ("seconds", "per_second", "free_bytes", "headline")
"""Ends of names that differ from run to run and say nothing of the student."""


@attrs.frozen(kw_only=True)
class StoredRun:
    """A run as its store shows it."""

    name: str
    place: str
    files: Mapping[str, int]
    """Path within the run folder → bytes."""
    written: str
    """ISO 8601, UTC: of the newest push, or of the newest file."""
    snapshot: Snapshot | None
    """None: the place is the working folder itself."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(self.files.values())

    @property
    def stages(self) -> list[str]:
        """The stages that are done, in the order of a run."""
        return [stage for stage in STAGES if f"stages/{stage}/done.json" in self.files]

    def by_folder(self) -> dict[str, int]:
        """Folder of the run folder → bytes, biggest first; files at the top count as ``.``."""
        sizes: dict[str, int] = {}
        for path, size in self.files.items():
            folder = path.partition("/")[0] if "/" in path else "."
            sizes[folder] = sizes.get(folder, 0) + size
        return dict(sorted(sizes.items(), key=lambda item: -item[1]))


@attrs.frozen
class Records:
    """What a run wrote down about itself."""

    settings: Mapping[str, Any]
    """``{"train.steps": 200}``; empty where the run didn't get that far."""
    done: tuple[Done, ...]


def list_runs(store: Store, root: Path | None) -> list[StoredRun]:
    """Every run, by name. `root` is the folder of the runs where the store has no durable place elsewhere."""
    if isinstance(store, DurableStore):
        return [_of_snapshot(store, snapshot) for snapshot in store.runs()]
    folders = sorted(root.iterdir()) if root is not None and root.is_dir() else []
    return [_of_folder(folder) for folder in folders if run_folder.is_run_folder(folder)]


def find_run(store: Store, root: Path | None, name: str) -> StoredRun:
    """One of them. Raises UserError where the store has none of that name."""
    if isinstance(store, DurableStore):
        snapshot = store.snapshot(name)
        if snapshot is not None:
            return _of_snapshot(store, snapshot)
    found = {run.name: run for run in list_runs(store, root)}
    if name not in found:
        raise UserError(f'the store has no run "{name}"', did_you_mean(name, list(found)))
    return found[name]


def records(store: Store, run: StoredRun) -> Records:
    """Read the settings and the stages' records. Raises StorageError; UserError where the store can't show files."""
    if run.snapshot is None:
        return _records(Path(run.place), run)
    if not isinstance(store, ReadableStore):
        raise UserError("this store can't show single files", f"bitnet runs pull {run.name}, and read its folder")
    with tempfile.TemporaryDirectory(prefix="bitnet-runs-") as folder:
        for path in (SETTINGS_FILE, *(f"stages/{stage}/done.json" for stage in run.stages)):
            if path in run.files:
                run_folder.write_bytes(Path(folder, path), store.read(run.snapshot, path))
        return _records(Path(folder), run)


def damaged_objects(store: Store, run: StoredRun) -> Iterator[str]:
    """What of a run's snapshot is not what was pushed. Reads every byte; nothing is pulled."""
    assert run.snapshot is not None
    if not isinstance(store, ReadableStore):
        raise UserError("this store can't show single files", f"bitnet runs pull {run.name}, which checks every byte")
    for path in run.snapshot.files:
        try:
            store.read(run.snapshot, path)
        except StorageError as error:
            yield error.why


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Name → both values, where they differ; None where one has none."""
    names = [*one, *(name for name in other if name not in one)]
    return {name: (one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)}


def results(found: Records) -> dict[str, Any]:
    """The figures of the stages, ``{"evaluate.heldout_kl": 3.2}``, without times."""
    figures = dict(pair for done in found.done for pair in flat(done.stage, done.summary))
    return {
        name: value
        for name, value in figures.items()
        if isinstance(value, int | float | str) and not name.endswith(_TIMED)
    }


def _records(folder: Path, run: StoredRun) -> Records:
    try:
        table = tomli.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        table = {}
    done = (run_folder.read_done(folder, stage) for stage in run.stages)
    return Records(dict(flat("", table)), tuple(each for each in done if each is not None))


def _of_snapshot(store: DurableStore, snapshot: Snapshot) -> StoredRun:
    return StoredRun(
        name=snapshot.run,
        place=store.location,
        files={path: file.size for path, file in snapshot.files.items()},
        written=snapshot.written,
        snapshot=snapshot,
    )


def _of_folder(folder: Path) -> StoredRun:
    files, newest = {}, 0.0
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path_problem(name) is None and path.is_file() and not path.name.startswith("."):
            stat = path.stat()
            files[name] = stat.st_size
            newest = max(newest, stat.st_mtime)
    written = datetime.fromtimestamp(newest, UTC).isoformat(timespec="seconds")
    return StoredRun(name=folder.name, place=str(folder), files=files, written=written, snapshot=None)


RECORD, OPTIMIZER = "training.json", "training.safetensors"
"""As `bitnet_core.model.read_checkpoint` has them, which loads torch."""


@attrs.frozen
class Checked:
    """One thing that was looked at."""

    what: str
    """For people: a stage's result, a checkpoint, a journal."""
    files: int
    size: int
    """Bytes that were read."""
    problems: tuple[str, ...]
    """Empty: it is what was written."""


def verify(folder: Path) -> Iterator[Checked]:
    """Check all that there is of one run. Reads every byte, changes nothing."""
    for stage in STAGES:
        done = run_folder.read_done(folder, stage)
        if done is None:
            if run_folder.done_path(folder, stage).exists():
                yield Checked(f"stage {stage}", 1, 0, (f"stages/{stage}/done.json can't be read",))
            continue
        for name, artifact in done.outputs.items():
            damage = run_folder.damaged_output(folder, artifact)
            problems = () if damage is None else (damage,)
            yield Checked(f"stage {stage}: {name}", len(artifact.files), sum(artifact.files.values()), problems)
    places = ("checkpoints/step_*", "set_aside/*/checkpoints/step_*")  # a calibrated start is an output of its stage
    for place in sorted(path for pattern in places for path in folder.glob(pattern) if path.is_dir()):
        yield _checkpoint(place, place.relative_to(folder).as_posix())
    yield from _paid(folder)


def _checkpoint(place: Path, name: str) -> Checked:
    """Each file by the digest in ``training.json``, and that by its own."""
    try:
        record: Any = json.loads((place / RECORD).read_text())
        files, sound = record.get("files", {}), has_its_digest(record)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        return Checked(name, 1, 0, (f"{name}/{RECORD} can't be read ({error})",))
    problems = [] if sound else [f"{name}/{RECORD} is not what was written there"]
    size = 0
    for file, digest in files.items():
        if file == OPTIMIZER and not (place / file).exists():  # it may be deleted to save space
            continue
        try:
            size += (place / file).stat().st_size
            if sha256_of(place / file) != digest:
                problems.append(f"{name}/{file} is not what was written there (its sha256 is another)")
        except OSError as error:
            problems.append(f"{name}/{file} can't be read ({error.strerror or error})")
    return Checked(name, len(files) + 1, size, tuple(problems))


def _paid(folder: Path) -> Iterator[Checked]:
    """Journals and ledgers, which carry a digest for each completion and each line."""
    from bitnet_providers.contract import ProviderError
    from bitnet_providers.raw import journal, ledger

    for place in (folder / "raw", folder / run_folder.BASELINE_JOURNAL, folder / run_folder.BENCHMARK_JOURNAL):
        paths = [*place.glob(journal.FILES), *place.glob(ledger.FILES)]
        if not paths:
            continue
        name = place.relative_to(folder).as_posix()
        try:
            found = journal.read_journal(place)
            lines = ledger.read_ledger(place, found, None).damaged
        except ProviderError as error:
            problems: tuple[str, ...] = (error.why,)
        else:
            counts = ((found.damaged, "damaged completions (asked again)"), (lines, "damaged lines of the ledger"))
            problems = tuple(f"{name}: {count:,} {what}" for count, what in counts if count)
        yield Checked(f"{name}: what was paid for", len(paths), sum(path.stat().st_size for path in paths), problems)
