"""`bitnet plugins`: what is installed, whether it works, and the fix where it doesn't."""

from typing import TYPE_CHECKING

import attrs
import click

from bitnet_cli.errors import user_errors
from bitnet_cli.reporter.terminal import open_console
from bitnet_cli.wording.hide_secrets import plain_json

if TYPE_CHECKING:
    from rich.console import Console

    from bitnet_cli.plugins.catalog import Plugins, Row

OWN = ("bitnet-core", "bitnet-providers", "bitnet-storage", "bitnet-cli")
"""Distributions that need no mention."""


@click.command("plugins", short_help="List the installed plugins, and the fix for broken ones.")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def plugins_command(as_json: bool) -> None:
    """List the installed teachers, stores, losses, exporters, benchmarks and launchers.

    Those that don't work are told with their fix.

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
    """Kind by kind, what each plugin is; then a line with the fix for each that doesn't work."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    for kind in dict.fromkeys(row.kind or "?" for row in plugins.all):
        rows = [row for row in plugins.all if (row.kind or "?") == kind]
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for row in rows:
            style = {"ok": "green", "disabled": "dim"}.get(row.status, "red")
            table.add_row(Text(row.name, style=style), Text(_about(row)))
        console.print(Text("losses" if kind == "loss" else f"{kind}s", style="bold"))
        console.print(Padding(table, (0, 0, 1, 2)))
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


def _about(row: "Row") -> str:
    """Its status where it isn't ok, what it is, what a teacher gives, and where it comes from if not from us."""
    words = [] if row.status == "ok" else [f"{row.status.upper()}:"]
    words += [row.summary] if row.summary else []
    if capabilities := capabilities_words(row):
        words.append(f"({capabilities})")
    if row.distribution not in OWN:
        words.append(f"[{row.distribution} {row.version}]")
    return " ".join(words)


def capabilities_words(row: "Row") -> str:
    """Of a teacher: ``top 20, ids, scoring, local``; what nobody knows before the probe has asked is "unknown"."""
    if row.kind != "teacher" or not row.capabilities:
        return ""
    has = row.capabilities
    most = has["max_top_logprobs"]
    words = [f"top {most}" if most else "no top-logprobs"]
    words += [
        word for name, word in (("token_ids", "ids"), ("token_bytes", "bytes"), ("scoring", "scoring")) if has[name]
    ]
    words.append("external" if has["external"] else "local")
    before = has["logprobs_before_temperature"]
    if most and not before:
        words.append(f"before temperature: {'unknown' if before is None else 'no'}")
    words += [f"no {word}" for name, word in (("top_p", "top-p"), ("seed", "seed")) if has.get(name) is False]
    return ", ".join(words) + ("; its settings decide" if row.by_settings else "")
