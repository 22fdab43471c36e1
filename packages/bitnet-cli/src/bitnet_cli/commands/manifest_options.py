"""The arguments and options that `bitnet run`, `plan`, `probe` and `dry-run` share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from bitnet_cli.commands import option_suggestions
from bitnet_cli.environment import env_file_option
from bitnet_cli.errors import UserError


def manifest_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The manifest, as `manifest`: Path, with `overrides`: tuple[str, ...] and `env_file`: Path | None."""
    for option in (
        env_file_option,
        click.option(
            "--set",
            "overrides",
            multiple=True,
            metavar="KEY=VALUE",
            shell_complete=option_suggestions.setting,
            help="Change one setting; VALUE as TOML writes it. May be repeated.",
        ),
        click.argument("manifest", type=click.Path(path_type=Path), shell_complete=option_suggestions.manifest),
    ):
        command = option(command)
    return command


def stage_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Which stages: `stages`: str | None (see `stage_names`), `start`: str | None, and `fresh`: bool."""
    for option in (
        click.option(
            "--fresh", is_flag=True, help="Redo every stage. A paid teacher's answers are kept and used again."
        ),
        click.option(
            "--from",
            "start",
            metavar="STAGE",
            shell_complete=option_suggestions.stage,
            help="Redo this stage and all after it.",
        ),
        click.option(
            "--stages",
            metavar="A,B",
            shell_complete=option_suggestions.several(option_suggestions.stages),
            help="Only these stages.",
        ),
    ):
        command = option(command)
    return command


def stage_names(stages: str | None) -> tuple[str, ...]:
    """What ``--stages`` names; none where it is not given. Raises UserError where it is empty."""
    names = tuple(name.strip() for name in (stages or "").split(",") if name.strip())
    if stages is not None and not names:
        raise UserError("--stages: names no stage", "write e.g. --stages train,evaluate")
    return names
