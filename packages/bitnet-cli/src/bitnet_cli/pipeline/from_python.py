"""`bitnet run` as a function, for notebooks and programs."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from bitnet_cli.errors import UserError


class RunFailedError(UserError):
    """A stage failed; finished stages are kept. Its text is the message of `bitnet run`."""

    def __init__(self, why: str, fix: str = "", message: str = "") -> None:
        super().__init__(why, fix)
        self.args = (why, fix, message)

    def __str__(self) -> str:
        return str(self.args[2]) or super().__str__()


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
    from bitnet_cli.pipeline.engine import RunOptions, open_run, run_pipeline
    from bitnet_cli.reporter.progress import Reporter
    from bitnet_cli.reporter.terminal import open_console

    options = RunOptions(
        overrides=[f"{key}={_toml(value)}" for key, value in (settings or {}).items()],
        env_file=None if env_file is None else Path(env_file),
        only=tuple(stages),
        start=start,
        fresh=fresh,
        yes=yes,
    )
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        reporter = Reporter(open_console(file=nowhere) if quiet else open_console(), errors=open_console(file=nowhere))
        opened = open_run(Path(manifest), options, reporter)
        if run_pipeline(opened):
            failure = reporter.failure
            assert failure is not None
            raise RunFailedError(failure.why, failure.fix, failure.message)
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
        raise UserError(f"a {type(value).__name__} can't stand in a manifest", "give plain values and lists") from error
