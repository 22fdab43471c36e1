"""`bitnet plugins`: what is installed, whether it works, and the fix where it doesn't."""

from typing import TYPE_CHECKING

import attrs
import click

from bitnet_cli.errors import user_errors
from bitnet_cli.reporter.terminal import open_console
from bitnet_cli.wording import plain_json

if TYPE_CHECKING:
    from rich.console import Console

    from bitnet_cli.plugins.catalog import Plugins, Row


@click.command("plugins", short_help="List the installed plugins, and the fix for broken ones.")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def plugins_command(as_json: bool) -> None:
    """List the installed teachers, stores, losses, exporters and benchmarks, and the fix for those that don't work.

    \b
    Examples:
      bitnet plugins
      bitnet plugins --json
    """
    with user_errors():
        from bitnet_cli.environment import load_environment
        from bitnet_cli.plugins.load import load_plugins

        plugins = load_plugins(load_environment())
    if as_json:
        click.echo(plugins_json(plugins))
    else:
        show_plugins(plugins, open_console(highlight=False, soft_wrap=False))


def plugins_json(plugins: "Plugins") -> str:
    """``{"plugins": [...], "warnings": [...]}``; a plugin has the fields of `bitnet_cli.plugins.catalog.Row`."""
    rows = [attrs.asdict(row) for row in plugins.all]
    return plain_json({"plugins": rows, "warnings": list(plugins.warnings)}, indent=2)


def show_plugins(plugins: "Plugins", console: "Console") -> None:
    """A table, then a line with the fix for each plugin that doesn't work."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("kind", "name", "status", "package", "capabilities"):
        table.add_column(title, no_wrap=title in ("kind", "name", "status"), overflow="fold")
    for row in plugins.all:
        style = {"ok": "green", "disabled": "dim"}.get(row.status, "red")
        table.add_row(
            Text(row.kind or "?"),
            Text(row.name),
            Text(row.status, style=style),
            Text(f"{row.distribution} {row.version}"),
            Text(capabilities_words(row)),
        )
    console.print(table)
    for row in plugins.all:
        if row.status not in ("ok", "disabled"):
            console.print(Text(f"{row.name} ({row.distribution}): {row.status}: {row.problem}"), soft_wrap=True)
            console.print(Text(f"  fix: {row.fix}"), soft_wrap=True)
    for warning in plugins.warnings:
        console.print(Text(f"warning: {warning}"), soft_wrap=True)
    if not plugins.all:
        console.print(
            "no plugin is installed, not even bitnet's own: repair with pip install --force-reinstall bitnet-cli"
        )


def capabilities_words(row: "Row") -> str:
    """``top 20, ids, scoring, local``; the others' summary."""
    if row.kind != "teacher" or not row.capabilities:
        return row.summary
    has = row.capabilities
    words = [f"top {has['max_top_logprobs']}" if has["max_top_logprobs"] else "no top-logprobs"]
    words += [
        word for name, word in (("token_ids", "ids"), ("token_bytes", "bytes"), ("scoring", "scoring")) if has[name]
    ]
    words.append("external" if has["external"] else "local")
    if not has["logprobs_before_temperature"]:
        words.append("log-probabilities after temperature")
    return ", ".join(words)
