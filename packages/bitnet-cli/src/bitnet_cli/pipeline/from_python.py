"""`bitnet run` as a function, for notebooks and programs."""

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from bitnet_cli.errors import UserError


class RunFailedError(UserError):
    """A stage failed. The message is what `bitnet run` would have said; finished stages are kept."""


def run(
    manifest: Path | str,
    settings: Mapping[str, Any] | None = None,
    *,
    stages: Sequence[str] = (),
    start: str | None = None,
    fresh: bool = False,
    yes: bool = False,
    env_file: Path | str | None = None,
    quiet: bool = False,
) -> Path:
    """Run the stages of `manifest`; gives back the run's folder. What is done is skipped, as with the command.

    `settings`: dotted keys to values, laid over the manifest (``{"train.steps": 400}``; ``--set`` of the command).
    `stages`: only these. `start`, `fresh`: what is redone, as ``--from`` and ``--fresh``. `yes` answers the question
    before an expensive collection. `quiet`: nothing is printed; ``logs/run.log`` has it.

    Variables of `env_file` (default: ``.env``) are put into this process's environment where they are not set.
    Raises UserError for what is wrong with the manifest, RunFailedError (a UserError too) where a stage fails.
    """
    from rich.console import Console

    from bitnet_cli.pipeline.engine import RunOptions, open_run, run_pipeline
    from bitnet_cli.reporter.reporter import Reporter

    options = RunOptions(
        overrides=[f"{key}={_toml(value)}" for key, value in (settings or {}).items()],
        env_file=None if env_file is None else Path(env_file),
        only=tuple(stages),
        start=start,
        fresh=fresh,
        yes=yes,
    )
    failure = io.StringIO()
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        reporter = Reporter(Console(file=nowhere) if quiet else Console(), errors=Console(file=failure))
        opened = open_run(Path(manifest), options, reporter)
        if run_pipeline(opened):
            raise RunFailedError(failure.getvalue().strip())
    store = opened.manifest.store
    return opened.plugins.require_store(store.kind).open(store.options).run_folder(opened.manifest.run.name)


def _toml(value: Any) -> str:
    """A value as TOML writes it, after ``=``, on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml(str(key))} = {_toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, os.PathLike):
        value = str(value)
    try:
        return tomli_w.dumps({"value": value}).removeprefix("value = ").strip()
    except TypeError as error:
        raise UserError(f"a {type(value).__name__} can't stand in a manifest  → give plain values and lists") from error
