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

    from bitnet_cli.decision import Request
    from bitnet_cli.environment import export, load_environment, skip_external
    from bitnet_cli.manifest import load_manifest, resolved_toml
    from bitnet_cli.pipeline import Run, go_on_command, run_pipeline
    from bitnet_cli.plugins import load_plugins
    from bitnet_cli.progress import Reporter
    from bitnet_cli.stages import PIPELINE
    from bitnet_cli.teacher import TeacherHandle

    path = Path(manifest)
    file = None if env_file is None else Path(env_file)
    environment = load_environment(file)
    overrides = [f"{key}={_toml(value)}" for key, value in (settings or {}).items()]
    plugins = load_plugins(environment)
    loaded = load_manifest(path, overrides, plugins, environment)
    request = Request(only=tuple(stages), start=start, fresh=fresh, skip_external=skip_external(environment))
    export(environment)
    tagged = loaded.teacher
    teacher = TeacherHandle(
        None if tagged is None else plugins.require_teacher(tagged.kind),
        None if tagged is None else tagged.options,
        skip_external=request.skip_external,
    )
    failure = io.StringIO()
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        code = run_pipeline(
            Run(
                manifest=loaded,
                resolved_toml=resolved_toml(loaded),
                plugins=plugins,
                pipeline=PIPELINE,
                request=request,
                reporter=Reporter(Console(file=nowhere) if quiet else Console(), errors=Console(file=failure)),
                command=go_on_command(path, overrides, file),
                teacher=teacher,
                yes=yes,
            )
        )
    if code:
        raise RunFailedError(failure.getvalue().strip())
    return plugins.require_store(loaded.store.kind).open(loaded.store.options).run_folder(loaded.run.name)


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
