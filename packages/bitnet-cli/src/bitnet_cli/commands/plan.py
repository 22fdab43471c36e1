"""`bitnet plan`: what `bitnet run` would do, and why."""

import sys
from pathlib import Path

import click

from bitnet_cli.commands.manifest_options import manifest_options, stage_names, stage_options
from bitnet_cli.environment import skip_external
from bitnet_cli.errors import user_errors
from bitnet_cli.wording import plain_json


@click.command("plan", short_help="Show what `bitnet run` would do with MANIFEST, and why.")
@manifest_options
@stage_options
@click.option("--manifest", "whole", is_flag=True, help="Show the whole manifest too, with every default.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan_command(
    manifest: Path,
    overrides: tuple[str, ...],
    env_file: Path | None,
    stages: str | None,
    start: str | None,
    fresh: bool,
    whole: bool,
    as_json: bool,
) -> None:
    """Show what `bitnet run` would do with MANIFEST, and why. Does nothing, asks no teacher.

    \b
    Examples:
      bitnet plan manifests/quickstart.toml
      bitnet plan M.toml --set train.steps=400   what a change would redo
      bitnet plan M.toml --manifest              with every setting, defaults too
      bitnet plan M.toml --json                  for programs
    """
    with user_errors():
        from bitnet_cli.manifest.open import open_manifest
        from bitnet_cli.pipeline.decision import Request
        from bitnet_cli.pipeline.plan import make_plan, show_plan
        from bitnet_cli.reporter.terminal import open_console
        from bitnet_cli.stages import PIPELINE

        found = open_manifest(manifest, overrides, env_file)
        request = Request(
            only=stage_names(stages), start=start, fresh=fresh, skip_external=skip_external(found.environment)
        )
        planned = make_plan(found.manifest, found.plugins, PIPELINE, request)
        if as_json:
            click.echo(plain_json(planned.as_json(), indent=2))
        else:
            show_plan(planned, open_console(), manifest=whole)
    sys.exit(2 if planned.problems else 0)
