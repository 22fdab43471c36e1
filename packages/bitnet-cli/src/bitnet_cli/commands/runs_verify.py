"""All that carries a digest in a run folder, checked against it: stages' results, checkpoints, what was paid for."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from bitnet_cli import run_folder
from bitnet_cli.manifest.stage_needs import STAGES
from bitnet_core.files import has_its_digest, sha256_of

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
