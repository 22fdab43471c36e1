"""What a stage's result depends on, as a digest, and what changed since the last time.

A fingerprint covers the stage's slice of the manifest, the content of the files the manifest names, the versions of
the file formats, and the digests of what the stage reads. It leaves out package versions and where the run folder is.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import attrs

from bitnet_cli import run_folder
from bitnet_cli.stages.stage import Stage

_WHOLE_FILE_BYTES = 64 * 2**20
# Bigger files count by size and time: hashing model weights would take longer than skipping a run may.


@attrs.frozen(kw_only=True)
class Identity:
    """What goes into a fingerprint; see `bitnet_cli.run_folder.Done` for the fields."""

    settings: dict[str, Any]
    files: dict[str, str]
    formats: dict[str, int]
    inputs: dict[str, str]

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(canonical_json(attrs.asdict(self)).encode()).hexdigest()

    def without(self, names: Sequence[str]) -> "Identity":
        """The same without these settings."""
        return attrs.evolve(self, settings={name: each for name, each in self.settings.items() if name not in names})


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: the same text for the same value in every process."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)


def manifest_slice(
    manifest: Any, sections: Sequence[str], ignores: Sequence[str] = ()
) -> tuple[dict[str, Any], dict[str, Path]]:
    """Flatten the sections of a manifest to settings by dotted name, and the files that they name.

    `sections` are names such as ``"train"`` or ``"run.seed"``; `ignores` are dotted names left out. A path (a field
    with attrs metadata ``{"path": True}``) is no setting: what counts is what lies there.
    """
    settings: dict[str, Any] = {}
    files: dict[str, Path] = {}
    for section in sections:
        value, is_path = manifest, False
        for part in section.split("."):
            is_path = bool(attrs.fields_dict(type(value))[part].metadata.get("path"))
            value = getattr(value, part)
        _flatten(section, value, is_path=is_path, settings=settings, files=files)
    for name in ignores:
        settings.pop(name, None)
        files.pop(name, None)
    return settings, files


def _flatten(name: str, value: Any, *, is_path: bool, settings: dict[str, Any], files: dict[str, Path]) -> None:
    if attrs.has(type(value)):
        fields = attrs.fields_dict(type(value))
        # As in the manifest, a plugin's options stand beside its kind (Tagged), in tables beside kinds (Exports), or
        # in tables beside the section's own settings (Evaluation).
        folded = {"options"} if set(fields) in ({"kind", "options"}, {"kinds", "options"}) else set()
        folded |= {"settings", "options"} if set(fields) == {"settings", "options"} else set()
        for field, attribute in fields.items():
            if attribute.metadata.get("later") and getattr(value, field) == attribute.default:
                continue  # runs that were made before it was there stay done
            child = name if field in folded else f"{name}.{field}"
            place = bool(attribute.metadata.get("path"))
            found = getattr(value, field)
            if field == "model" and found == "":
                found = _model_of_environment(value)
            _flatten(child, found, is_path=place, settings=settings, files=files)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _flatten(f"{name}.{key}", item, is_path=False, settings=settings, files=files)
    elif value is not None and (is_path or isinstance(value, Path)) and _names_a_place(value):
        files[name] = Path(value)
    elif isinstance(value, list | tuple):
        settings[name] = [attrs.asdict(item) if attrs.has(type(item)) else item for item in value]
    else:
        settings[name] = value


def _model_of_environment(options: Any) -> str:
    """What the variable says that a teacher's ``model_env`` names: another model answers otherwise."""
    return os.environ.get(getattr(options, "model_env", ""), "").strip()


def _names_a_place(value: Any) -> bool:
    """A field may hold a path or a word such as "teacher"; the loader makes paths absolute."""
    return isinstance(value, Path) or (isinstance(value, str) and Path(value).is_absolute())


def digest_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_files(files: Mapping[str, Path]) -> str:
    """One sha256 over names and contents, independent of the order and of where the files lie."""
    return digest_of({name: digest_file(path) for name, path in files.items()})


def digest_of(digests: Mapping[str, str]) -> str:
    """The same of files whose digests are known."""
    return hashlib.sha256(canonical_json(digests).encode()).hexdigest()


MOST_FILES = 10_000


def digest_place(path: Path) -> str:
    """A file or folder that a manifest names: by content, but big files (weights) by size and time.

    "missing" where there is nothing, and nothing of a folder with far more files than a model or a data set has (a
    home, the root): the stage itself says what it needs.
    """
    if path.is_file():
        return _digest_or_stamp(path)
    if not path.is_dir():
        return "missing"
    found = list(islice(path.rglob("*"), MOST_FILES + 1))
    if len(found) > MOST_FILES:
        return f"more than {MOST_FILES} files"
    parts: dict[str, str] = {}
    for file in sorted(found):
        if file.is_file():
            parts[file.relative_to(path).as_posix()] = _digest_or_stamp(file)
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()


def _digest_or_stamp(file: Path) -> str:
    status = file.stat()
    if status.st_size <= _WHOLE_FILE_BYTES:
        return digest_file(file)
    return f"{status.st_size} bytes, changed at {status.st_mtime_ns} ns"


def is_more(before: Mapping[str, Any], now: Identity, may_grow: Sequence[str]) -> bool:
    """Whether nothing differs but that there is more of some of `may_grow`. `before` has the fields of `Identity`.

    A setting that isn't given (a budget) may be less or more: what goes on from it decides.
    """
    old, new = before.get("settings") or {}, json.loads(canonical_json(now.settings))
    changed = {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}
    same = all(before.get(name) == json.loads(canonical_json(getattr(now, name))) for name in _BESIDE_SETTINGS)
    return bool(changed) and same and changed <= set(may_grow) and all(_more(old.get(n), new.get(n)) for n in changed)


_BESIDE_SETTINGS = ("files", "formats", "inputs")


def _more(before: Any, now: Any) -> bool:
    return before is None or now is None or now > before


def describe_changes(old: Any, new: Identity, makers: Mapping[str, str], limit: int = 4) -> str:
    """What differs between a finished stage's record and what it would be now: ``train.steps 200 → 300``.

    `old` has the fields of `Identity`; `makers` maps what is read to the stage that writes it. Settings are compared
    as JSON would give them back, so a tuple equals the list that was stored.
    """
    changes: list[str] = []
    now, before = json.loads(canonical_json(new.settings)), old.settings
    for name in sorted(now.keys() | before.keys()):
        if name not in before:
            changes.append(f"{name} is new ({_short(now[name])})")
        elif name not in now:
            changes.append(f"{name} is gone (was {_short(before[name])})")
        elif now[name] != before[name]:
            changes.append(f"{name} {_short(before[name])} → {_short(now[name])}")
    changes += [f"what {name} names has changed" for name in _differing(old.files, new.files)]
    changes += [
        f"file format {name} {old.formats.get(name, 'none')} → {new.formats.get(name, 'none')}"
        for name in _differing(old.formats, new.formats)
    ]
    for name in _differing(old.inputs, new.inputs):
        verb = "is new" if name not in old.inputs else "is gone" if name not in new.inputs else "has changed"
        changes.append(f"its input {name} {verb}" + (f" (stage {makers[name]})" if name in makers else ""))
    more = f" and {len(changes) - limit} more" if len(changes) > limit else ""
    return ", ".join(changes[:limit]) + more


def _differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))


def _short(value: Any) -> str:
    if value is None:
        return "unset"  # TOML has no null
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def digest_outputs(folder: Path, stage: Stage, name: str) -> run_folder.Artifact:
    """Name, size and digest of what the stage wrote."""
    files = {path.relative_to(folder).as_posix(): path for path in stage.find(folder, name)}
    if not files:
        raise RuntimeError(f"stage {stage.name} finished, but wrote no {name}")
    digests = {key: digest_file(path) for key, path in files.items()}
    return run_folder.Artifact(
        digest=digest_of(digests),
        files={key: path.stat().st_size for key, path in files.items()},
        sha256=digests,
    )
