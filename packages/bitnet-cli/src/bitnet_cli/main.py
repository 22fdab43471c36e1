"""The ``bitnet`` command. What a subcommand needs is imported inside it, so that ``--help`` costs next to nothing."""

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bitnet_cli.commands.chat import chat_command
from bitnet_cli.commands.compare import compare_command
from bitnet_cli.commands.completion import completion_command
from bitnet_cli.commands.doctor import doctor_command
from bitnet_cli.commands.export import export_command
from bitnet_cli.commands.generate import generate_command
from bitnet_cli.commands.manifests import init_command, manifests
from bitnet_cli.commands.runs import runs
from bitnet_cli.commands.serve import serve_command
from bitnet_cli.commands.traces import traces
from bitnet_cli.environment import env_file_option, load_environment, skip_external
from bitnet_cli.errors import UserError, user_errors

if TYPE_CHECKING:
    from bitnet_cli.decision import Request
    from bitnet_cli.manifest import Manifest
    from bitnet_cli.plugins import Plugins

MANIFEST = click.argument("manifest", type=click.Path(path_type=Path))
OVERRIDES = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change one setting; VALUE as TOML writes it. May be repeated.",
)
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class Bitnet(click.Group):
    """The command group: output that any terminal can show, and a quiet end at Ctrl-C."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            # "?" in place of what an ASCII terminal can't show
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        return super().main(*args, **kwargs)

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except KeyboardInterrupt:
            click.echo("stopped; finished stages are kept; go on with the same command", err=True)
            sys.exit(130)  # 128 + SIGINT


@click.group(cls=Bitnet, context_settings=CONTEXT)
@click.version_option(package_name="bitnet-cli", prog_name="bitnet")
def cli() -> None:
    """Distil any teacher LLM, hosted or local, into a 1.58-bit student.

    \b
    Examples:
      bitnet init                                          manifests to start from, in this folder
      bitnet run manifests/quickstart.toml                 the whole job, on any laptop
      bitnet plan manifests/quickstart.toml                what that would do, and why
      bitnet run M.toml --set train.steps=400              the same with more steps
      bitnet report runs/quickstart                        write the report again
      bitnet export runs/quickstart --to gguf,hf           files for llama.cpp and transformers
      bitnet chat runs/quickstart                          talk with the student
    """


def stage_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that choose stages; `run` and `plan` share them."""
    for option in (
        click.option("--fresh", is_flag=True, help="Redo every stage. What a paid teacher said is used again."),
        click.option("--from", "start", metavar="STAGE", help="Redo this stage and all after it."),
        click.option("--stages", metavar="A,B", help="Only these stages."),
        env_file_option,
        OVERRIDES,
    ):
        command = option(command)
    return command


@cli.command()
@MANIFEST
@stage_options
@click.option("--discard-paid", is_flag=True, help="Delete what the teacher has said in this run, and ask again.")
@click.option("--shard", metavar="I/N", help="Ask only for part I of N: one machine's of several.")
@click.option("--retry-failed", is_flag=True, help="Ask the teacher again for what it refused before.")
@click.option("--yes", is_flag=True, help="Answer yes to questions, such as the one before an expensive collection.")
@click.option("--devices", type=click.IntRange(min=1), metavar="N", help="Train on N GPUs (or CPU processes).")
@click.option("--quiet", "-q", is_flag=True, help="Tell only warnings and failures, on stderr.")
@click.option("--json", "as_json", is_flag=True, help="Tell what happens in JSON lines (docs/events.md).")
def run(
    manifest: Path,
    overrides: tuple[str, ...],
    env_file: Path | None,
    stages: str | None,
    start: str | None,
    fresh: bool,
    discard_paid: bool,
    shard: str | None,
    retry_failed: bool,
    yes: bool,
    devices: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Run the stages of MANIFEST. What is done with the same settings and inputs is skipped.

    \b
    Examples:
      bitnet run manifests/quickstart.toml
      bitnet run M.toml --set train.steps=400 --set 'run.name="longer"'
      bitnet run M.toml --stages train,evaluate
      bitnet run M.toml --devices 4              train on four GPUs
      bitnet run M.toml --from project           redo this stage and all after it
      bitnet run M.toml --fresh                  redo all; a paid teacher is not asked again
      bitnet run M.toml --discard-paid           delete its answers and ask it again
      bitnet run M.toml --json                   an event a line, for programs
      bitnet run M.toml --shard 2/4 --stages storage,collect
                                                 the second of four machines (docs/collect.md)
    """
    overrides = (*overrides, *_of_collect(shard, retry_failed))
    if devices is not None:
        overrides = (*overrides, f"train.devices={devices}")
    from bitnet_cli.pipeline import Run, go_on_command, run_pipeline
    from bitnet_cli.voice import open_reporter

    command = go_on_command(manifest, overrides, env_file)
    with user_errors(), open_reporter(command, quiet=quiet, as_json=as_json) as reporter:
        from bitnet_cli import consent
        from bitnet_cli.environment import export
        from bitnet_cli.stages import PIPELINE
        from bitnet_cli.teacher import TeacherHandle

        environment = load_environment(env_file)
        loaded, toml, plugins = _load(manifest, overrides, environment)
        request = _request(stages, start, fresh, environment)
        if discard_paid:
            consent.ask(
                "This deletes everything that the teacher has said in this run, paid for or not. Go on?", yes=yes
            )
        export(environment)
        tagged = loaded.teacher
        teacher = None if tagged is None else plugins.require_teacher(tagged.kind)
        code = run_pipeline(
            Run(
                manifest=loaded,
                resolved_toml=toml,
                plugins=plugins,
                pipeline=PIPELINE,
                request=request,
                reporter=reporter,
                command=command,
                teacher=TeacherHandle(
                    teacher, None if tagged is None else tagged.options, skip_external=request.skip_external
                ),
                discard_paid=discard_paid,
                yes=yes,
            )
        )
    sys.exit(code)


@cli.command()
@MANIFEST
@stage_options
def plan(
    manifest: Path,
    overrides: tuple[str, ...],
    env_file: Path | None,
    stages: str | None,
    start: str | None,
    fresh: bool,
) -> None:
    """Show what `bitnet run` would do with MANIFEST, and why. Does nothing, asks no teacher.

    \b
    Examples:
      bitnet plan manifests/quickstart.toml
      bitnet plan M.toml --set train.steps=400   what a change would redo
    """
    with user_errors():
        from bitnet_cli.environment import export
        from bitnet_cli.plan import make_plan, show_plan
        from bitnet_cli.stages import PIPELINE

        environment = load_environment(env_file)
        loaded, toml, plugins = _load(manifest, overrides, environment)
        export(environment)  # a teacher's own check looks for its key
        planned = make_plan(loaded, plugins, PIPELINE, _request(stages, start, fresh, environment))
        show_plan(planned, toml, _console())
    sys.exit(2 if planned.problems else 0)


@cli.command()
@MANIFEST
@OVERRIDES
@env_file_option
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
def probe(manifest: Path, overrides: tuple[str, ...], env_file: Path | None, as_json: bool) -> None:
    """Ask MANIFEST's teacher a handful of questions: can its log-probabilities be trusted?

    A collection does this by itself; the verdict is kept for a week. Exit code 0: trusted for KD, 2: not.

    \b
    Examples:
      bitnet probe manifests/quickstart.toml
      bitnet probe M.toml --json
    """
    with user_errors():
        from bitnet_cli.commands.probe import probe_command
        from bitnet_cli.environment import export

        environment = load_environment(env_file)
        loaded, _, plugins = _load(manifest, overrides, environment)
        export(environment)
        code = probe_command(loaded, plugins, _console(), skip_external=skip_external(environment), as_json=as_json)
    sys.exit(code)


@cli.command("dry-run")
@MANIFEST
@OVERRIDES
@env_file_option
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def dry_run(manifest: Path, overrides: tuple[str, ...], env_file: Path | None, as_json: bool) -> None:
    """How much memory does the model of [dry_run] in MANIFEST take? Predicted, and measured where it fits.

    \b
    Examples:
      bitnet dry-run manifests/7b-dry-run.toml
      bitnet dry-run manifests/7b-dry-run.toml --set dry_run.context=8192 --set dry_run.batch_size=4
    """
    with user_errors():
        from bitnet_cli.commands.dry_run import dry_run_command

        loaded, _, _ = _load(manifest, overrides, load_environment(env_file))
        dry_run_command(loaded, _console(), as_json=as_json)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def plugins(as_json: bool) -> None:
    """List the installed teachers, stores, losses, exporters and benchmarks, and the fix for those that don't work.

    \b
    Examples:
      bitnet plugins
      bitnet plugins --json
    """
    from bitnet_cli.commands.plugins import plugins_command

    assert plugins_command.callback is not None
    plugins_command.callback(as_json=as_json)


@cli.command()
def sanity() -> None:
    """Check this installation in seconds: imports, a tiny student, a tiny trace through the loss, the plugins.

    \b
    Example:
      bitnet sanity
    """
    from bitnet_cli.sanity import run_sanity

    sys.exit(1 if run_sanity(_console()) else 0)


@cli.command()
@click.argument("run_folders", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    default="comparison.html",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Of several runs: the page to write.",
)
def report(run_folders: tuple[Path, ...], out: Path) -> None:
    """Write report.md and report.html of the run folder RUN, from what is there, also while it is at work.

    Of several runs: one page that compares them.

    \b
    Examples:
      bitnet report runs/quickstart
      bitnet report runs/short runs/long                   → comparison.html
      bitnet report runs/* --out all.html
    """
    with user_errors():
        from bitnet_cli.commands.report import report_command

        report_command(run_folders, out)


for command in (
    *(generate_command, chat_command, compare_command, export_command, traces),
    *(runs, doctor_command, init_command, manifests, completion_command, serve_command),
):
    cli.add_command(command)


def _load(manifest: Path, overrides: tuple[str, ...], environment: dict[str, str]) -> "tuple[Manifest, str, Plugins]":
    from bitnet_cli.manifest import load_manifest, resolved_toml
    from bitnet_cli.plugins import load_plugins

    plugins = load_plugins(environment)
    loaded = load_manifest(manifest, overrides, plugins, environment)
    return loaded, resolved_toml(loaded), plugins


def _of_collect(shard: str | None, retry_failed: bool) -> Iterator[str]:
    """The options that are settings of [collect]: checked there, and part of what a run is known by."""
    if shard is not None:
        yield f'collect.shard="{shard}"'
    if retry_failed:
        yield "collect.retry_failed=true"


def _request(stages: str | None, start: str | None, fresh: bool, environment: dict[str, str]) -> "Request":
    from bitnet_cli.decision import Request

    only = tuple(name.strip() for name in stages.split(",") if name.strip()) if stages is not None else ()
    if stages is not None and not only:
        raise UserError("--stages: names no stage  → write e.g. --stages train,evaluate")
    return Request(only=only, start=start, fresh=fresh, skip_external=skip_external(environment))


def _console(stderr: bool = False) -> Any:
    from rich.console import Console

    return Console(stderr=stderr)
