"""Verdicts of earlier probes, kept for a week in the user's cache folder."""

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs

from bitnet_providers.probe.verdict import VERDICT_VERSION, Verdict
from bitnet_providers.raw.atomic_file import atomic_file

MAX_AGE = timedelta(days=7)
"""A hosted model changes behind its name."""

_SECRET = ("key", "token", "secret", "password", "header", "credential")


def verdict_key(kind: str, options: Any, description: Mapping[str, Any]) -> str:
    """sha256 of what the verdict is about: the plugin, its options, and what the teacher says of itself.

    Options whose names sound like secrets are left out, unless they name an environment variable (``..._env``).
    """
    asked = {"version": VERDICT_VERSION, "kind": kind, "options": _plain(options), "teacher": dict(description)}
    text = json.dumps(asked, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def verdict_path(cache: Path, key: str) -> Path:
    return cache / "probes" / f"{key[:32]}.json"


def from_json(value: Any) -> Verdict | None:
    """The verdict that `to_json` wrote; None for anything else, and for other versions."""
    names = {field.name for field in attrs.fields(Verdict)}
    if not isinstance(value, dict) or set(value) != names or value["version"] != VERDICT_VERSION:
        return None
    if not isinstance(value["trusted_for_kd"], bool) or not isinstance(value["probed"], str):
        return None
    try:
        return Verdict(**value | {name: tuple(map(str, value[name])) for name in ("reasons", "notes")})
    except TypeError:
        return None


def read_verdict(path: Path, now: datetime | None = None, *, max_age: timedelta = MAX_AGE) -> Verdict | None:
    """The verdict in `path`, where there is one that is not older than `max_age` (a week)."""
    try:
        verdict = from_json(json.loads(path.read_text(encoding="utf-8")))
        if verdict is None:
            return None
        age = (now or datetime.now(UTC)) - datetime.fromisoformat(verdict.probed)
    except (OSError, ValueError, TypeError):
        return None
    return verdict if timedelta(0) <= age <= max_age else None


def write_verdict(path: Path, verdict: Verdict) -> None:
    """Whole or not at all. Raises OSError."""
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(verdict.to_json(), indent=2) + "\n", encoding="utf-8")


def _plain(options: Any) -> dict[str, Any]:
    fields = attrs.fields_dict(type(options)) if attrs.has(type(options)) else {}
    return {
        name: value
        for name, value in (attrs.asdict(options) if fields else {}).items()
        if (name.endswith("_env") or not any(word in name.lower() for word in _SECRET))
        # One that was added later leaves the verdicts of before as they are, while it has its default.
        and not (fields[name].metadata.get("later") and value == fields[name].default)
    }
