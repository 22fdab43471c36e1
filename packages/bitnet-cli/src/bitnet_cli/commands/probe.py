"""`bitnet probe`: asks a live teacher and prints the verdict."""

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bitnet_cli.commands.shared_options import manifest_options
from bitnet_cli.environment import skip_external
from bitnet_cli.errors import ProblemsError, UserError, problem_of, user_errors
from bitnet_cli.wording.hide_secrets import plain_json

if TYPE_CHECKING:
    from rich.console import Console

    from bitnet_cli.manifest.load import Opened
    from bitnet_providers.contract import Teacher
    from bitnet_providers.probe.verdict import Verdict


@click.command("probe", short_help="Check whether a teacher's log-probabilities can be trusted.")
@manifest_options
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
def probe_command(manifest: Path, overrides: tuple[str, ...], env_file: Path | None, as_json: bool) -> None:
    """Ask MANIFEST's teacher a handful of questions: can its log-probabilities be trusted?

    A collection does this by itself; the verdict is kept for a week. Exit code 0: trusted for KD (knowledge
    distillation, training on the teacher's probabilities); 2: not.

    \b
    Examples:
      bitnet probe manifests/quickstart.toml
      bitnet probe M.toml --json
    """
    with user_errors():
        from bitnet_cli.manifest.load import open_manifest

        verdict = probe(open_manifest(manifest, overrides, env_file))
    if as_json:
        click.echo(plain_json(verdict.to_json(), indent=2))
    else:
        from bitnet_cli.reporter.terminal import open_console

        show_verdict(verdict, open_console())
    sys.exit(0 if verdict.trusted_for_kd else 2)


def probe(opened: "Opened") -> "Verdict":
    """Ask the teacher, and keep the verdict for the next collection. Raises UserError.

    What it will cost is said before, on stderr.
    """
    from bitnet_cli.stages.open_teacher import TeacherHandle
    from bitnet_cli.stages.probe import keep_verdict
    from bitnet_providers.contract import ProviderError, servers_of
    from bitnet_providers.probe.questions import estimate, probe_teacher

    tagged = opened.manifest.teacher
    if tagged is None:
        raise UserError(
            "bitnet probe needs a teacher", 'add [teacher] with kind = "local" (or another) to the manifest'
        )
    plugin = opened.plugins.require_teacher(tagged.kind)
    if problems := plugin.check(tagged.options) if plugin.check is not None else []:
        raise ProblemsError([problem_of(problem).within("teacher") for problem in problems])
    handle = TeacherHandle(plugin, tagged.options, skip_external=skip_external(opened.environment))

    async def ask(teacher: "Teacher") -> "Verdict":
        cost = estimate(teacher.capabilities, len(servers_of(teacher)))
        click.echo(f"asking {tagged.kind}: {cost.requests} requests, at most {cost.tokens:,} tokens", err=True)
        verdict = await probe_teacher(teacher, tagged.kind)
        keep_verdict(verdict, tagged.kind, tagged.options, teacher)
        return verdict

    try:
        return handle.ask(ask)
    except ProviderError as error:
        raise UserError(problem_of(error).why, problem_of(error).fix) from error
    finally:
        with contextlib.suppress(Exception):  # the verdict is what counts
            handle.close()


def show_verdict(verdict: "Verdict", console: "Console") -> None:
    """A table of what was found, then the reasons and notes."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from bitnet_cli.report.sections.teacher import verdict_rows

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("what", "found"):
        table.add_column(title, overflow="fold")
    for name, value in verdict_rows(verdict):
        table.add_row(Text(name), Text(value))
    console.print(table)
    word, style = ("trusted for KD", "bold green") if verdict.trusted_for_kd else ("not trusted for KD", "bold red")
    console.print(Text(word, style=style))
    for line in verdict.reasons:
        console.print(Text(f"  because {line}"), soft_wrap=True)
    for line in verdict.notes:
        console.print(Text(f"  note: {line}", style="yellow"), soft_wrap=True)
    if not verdict.trusted_for_kd:
        from bitnet_providers.probe.verdict import SEQUENCES

        console.print(Text(f"  {SEQUENCES}"), soft_wrap=True)
