"""`bitnet run`: the stages of a manifest, from the first that is not done."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from bitnet_cli.commands.shared_options import manifest_options, stage_names, stage_options
from bitnet_cli.errors import user_errors


@click.command("run", short_help="Run the stages of MANIFEST; what is done is skipped.")
@manifest_options
@stage_options
@click.option("--discard-paid", is_flag=True, help="Delete the teacher's answers of this run, and ask again.")
@click.option("--shard", metavar="I/N", help="Ask only for part I of N, where N machines share a collection.")
@click.option("--retry-failed", is_flag=True, help="Ask the teacher again what it refused to answer before.")
@click.option("--yes", is_flag=True, help="Answer yes to questions, such as the one before an expensive collection.")
@click.option("--devices", type=click.IntRange(min=1), metavar="N", help="Train on N GPUs (or CPU processes).")
@click.option("--cluster", metavar="KIND", help="Start the workers of a collection with: local, ray.")
@click.option("--quiet", "-q", is_flag=True, help="Print only warnings and failures, on stderr.")
@click.option("--json", "as_json", is_flag=True, help="Print what happens as JSON lines (docs/events.md).")
def run_command(manifest: Path, quiet: bool, as_json: bool, **options: Any) -> None:
    """Run the stages of MANIFEST. What is done with the same settings and inputs is skipped.

    \b
    Examples:
      bitnet run manifests/quickstart.toml
      bitnet run M.toml --set train.steps=400 --set 'run.name="longer"'
      bitnet run M.toml --stages train,evaluate
      bitnet run M.toml --devices 4              train on four GPUs
      bitnet run M.toml --cluster ray            collect with the workers of a Ray cluster
      bitnet run M.toml --from project           redo this stage and all after it
      bitnet run M.toml --fresh                  redo all; a paid teacher is not asked again
      bitnet run M.toml --discard-paid           delete its answers and ask it again
      bitnet run M.toml --json                   an event a line, for programs
      bitnet run M.toml --shard 2/4 --stages storage,collect
                                                 the second of four machines (docs/collect.md)
    """
    from bitnet_cli.pipeline.engine import RunOptions, go_on_command, open_run, run_pipeline
    from bitnet_cli.pipeline.stop_signals import end_as_ctrl_c
    from bitnet_cli.reporter.progress import open_reporter

    overrides = (*options.pop("overrides"), *_as_settings(options))
    command = go_on_command(manifest, overrides, options["env_file"])
    with user_errors(), end_as_ctrl_c() as told, open_reporter(command, quiet=quiet, as_json=as_json) as reporter:
        only = stage_names(options.pop("stages"))
        run = open_run(manifest, RunOptions(overrides=overrides, only=only, **options), reporter)
        if run.options.discard_paid:
            from bitnet_cli.pipeline import consent

            question = "This deletes everything that the teacher has said in this run, paid for or not. Go on?"
            consent.ask(question, yes=run.options.yes)
        code = run_pipeline(run)
    sys.exit(told.exit_code(code))


def _as_settings(options: dict[str, Any]) -> Iterator[str]:
    """Takes the options that are settings of the manifest: checked there, and part of what a run is known by."""
    names = ("shard", "retry_failed", "devices", "cluster")
    shard, retry_failed, devices, cluster = (options.pop(name) for name in names)
    if shard is not None:
        yield f'collect.shard="{shard}"'
    if retry_failed:
        yield "collect.retry_failed=true"
    if devices is not None:
        yield f"train.devices={devices}"
    if cluster is not None:
        yield f'cluster.kind="{cluster}"'
