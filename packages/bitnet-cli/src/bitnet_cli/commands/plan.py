"""`bitnet plan`: what `bitnet run` would do, and why."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bitnet_cli.commands.shared_options import manifest_options, stage_names, stage_options
from bitnet_cli.environment import skip_external
from bitnet_cli.errors import user_errors
from bitnet_cli.wording.hide_secrets import plain_json

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from bitnet_cli.pipeline.make_plan import Plan
    from bitnet_cli.pipeline.run_or_skip import Decision

WORDS = {
    "run": ("run", "cyan"),
    "skip": ("skip", "dim"),
    "skip external": ("skip", "yellow"),
    "skip missing": ("skip", "yellow"),
    "missing": ("can't run", "bold red"),
}
"""By a decision's action: what is told, and its style."""


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
        from bitnet_cli.manifest.load import open_manifest
        from bitnet_cli.pipeline.make_plan import make_plan
        from bitnet_cli.pipeline.run_or_skip import Request
        from bitnet_cli.reporter.terminal import open_console
        from bitnet_cli.stages import PIPELINE

        found = open_manifest(manifest, overrides, env_file)
        request = Request(
            only=stage_names(stages), start=start, fresh=fresh, skip_external=skip_external(found.environment)
        )
        planned = make_plan(found.manifest, found.plugins, PIPELINE, request)
        if as_json:
            click.echo(plain_json(plan_json(planned), indent=2))
        else:
            show_plan(planned, open_console(), manifest=whole)
    sys.exit(2 if planned.problems else 0)


def plan_json(plan: "Plan") -> dict[str, Any]:
    """For programs."""
    import attrs
    import tomli

    from bitnet_cli.manifest.toml_files import resolved_toml

    return {
        "run_folder": None if plan.folder is None else str(plan.folder),
        "problems": [attrs.asdict(each) for each in plan.problems],
        "stages": [
            {"stage": each.stage.name, "would": WORDS[each.action][0], "why": _reason(each)} for each in plan.decisions
        ],
        "estimates": dict(plan.estimates),
        "seconds": {stage: round(seconds, 1) for stage, seconds in plan.seconds.items()},
        "asked_first": list(plan.asked),
        "notes": list(plan.notes),
        "manifest": tomli.loads(resolved_toml(plan.manifest)),
    }


def show_plan(plan: "Plan", console: "Console", *, manifest: bool = False) -> None:
    """Print what is wrong, the stages, the estimates, what is worth knowing, and (`manifest`) the resolved manifest."""
    from bitnet_cli.manifest.toml_files import resolved_toml

    # Outside a terminal nothing is wrapped or cut to an assumed width.
    free = not console.is_terminal
    _show_lines("Problems", plan.problems, "bold red", console)
    where = str(plan.folder) if plan.folder is not None else "known once the store is opened"
    console.print(_heading(f"Stages · run folder: {where}"), soft_wrap=True)
    console.print(_stages(plan, console), soft_wrap=free)
    _show_lines("Estimates", [f"{name}: {value}" for name, value in plan.estimates], "none", console)
    _show_lines("Asked first", plan.asked, "none", console)
    _show_lines("Notes", plan.notes, "yellow", console)
    if manifest:
        console.print(_heading("Manifest, resolved"))
        console.print(_manifest(resolved_toml(plan.manifest), console), soft_wrap=free)


def _show_lines(title: str, lines: Sequence[object], style: str, console: "Console") -> None:
    if lines:
        console.print(_heading(title))
        for line in lines:
            console.print(f"  {line}", style=style, markup=False, highlight=False, soft_wrap=True)


def _heading(text: str) -> "RenderableType":
    from rich.text import Text

    return Text(f"\n{text}", style="bold")


def _manifest(toml: str, console: "Console") -> "RenderableType":
    from rich.syntax import Syntax
    from rich.text import Text

    return Syntax(toml.strip(), "toml", background_color="default") if console.is_terminal else Text(toml.strip())


def _stages(plan: "Plan", console: "Console") -> "RenderableType":
    from rich.table import Table
    from rich.text import Text

    if not console.is_terminal:
        lines = [f"  {each.stage.name:<9} {WORDS[each.action][0]:<10} {_reason(each)}" for each in plan.decisions]
        return Text("\n".join(lines))
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    for column in ("stage", "would", "why"):
        table.add_column(column)
    for each in plan.decisions:
        word, style = WORDS[each.action]
        table.add_row(each.stage.name, Text(word, style=style), Text(_reason(each)))
    return table


def _reason(each: "Decision") -> str:
    return each.reason.removeprefix("skipped: ")
