"""`bitnet sweep`: one manifest with several values of some settings, and one comparison of what came of them."""

import asyncio
import glob
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bitnet_cli.commands import completion
from bitnet_cli.commands.shared_options import manifest_options
from bitnet_cli.errors import EXIT_USER, user_errors

if TYPE_CHECKING:
    from bitnet_cli.sweeping.sweep import Sweep


@click.command("sweep", short_help="Run MANIFEST with several values of settings, and compare.")
@manifest_options
@click.option(
    "--over",
    "overs",
    multiple=True,
    metavar="KEY=VALUE,VALUE",
    shell_complete=completion.setting,
    help="A setting and the values that it takes. May be repeated: then every choice is run.",
)
@click.option("--cluster", metavar="KIND", help="Start the workers with: local, ray.")
@click.option("--print", "only_print", is_flag=True, help="Show what would be run and shared; run nothing.")
@click.option("--yes", is_flag=True, help="Answer yes to questions, such as the one before an expensive collection.")
def sweep_command(
    manifest: Path,
    overrides: tuple[str, ...],
    env_file: Path | None,
    overs: tuple[str, ...],
    cluster: str | None,
    only_print: bool,
    yes: bool,
) -> None:
    """Run MANIFEST with every choice of the values, each in a run folder of its own, and compare them on one page.

    What no value changes is done once and shared: the teacher is asked once. A variant that fails ends no other. The
    same command goes on where it was stopped. On as many workers as [cluster] says, else one after another.

    \b
    Examples:
      bitnet sweep M.toml --over train.learning_rate=1e-4,2e-4
      bitnet sweep M.toml --over train.learning_rate=1e-4,2e-4 --over loss.tau=1.0,2.0
      bitnet sweep M.toml --over train.steps=200,400 --print
      bitnet sweep M.toml --over train.steps=200,400 --cluster local --set cluster.workers=2
    """
    with user_errors():
        from bitnet_cli.sweeping.sweep import compare, open_sweep

        if cluster is not None:
            overrides = (*overrides, f'cluster.kind="{cluster}"')
        sweep = open_sweep(manifest, overs, overrides, env_file)
        if only_print:
            show(sweep, manifest, overrides)
            return
        failed = run(sweep, manifest, overs, overrides, env_file, yes=yes)
        for line in compare(sweep, failed):
            click.echo(line)
        if failed:
            click.echo(
                f"{len(failed)} of {len(sweep.folders)} runs failed; the same command tries them again", err=True
            )
    sys.exit(EXIT_USER if failed else 0)


def show(sweep: "Sweep", manifest: Path, overrides: tuple[str, ...]) -> None:
    """The command of each variant, and what it takes from another."""
    from bitnet_cli.sweeping.sweep import planned

    for variant, stages, taken in planned(sweep):
        settings = [part for text in (*overrides, *variant.settings) for part in ("--set", text)]
        click.echo(shlex.join(["bitnet", "run", str(manifest), *settings]))
        click.echo(f"  runs {', '.join(stages)}")
        for other in dict.fromkeys(taken.values()):
            shared = ", ".join(stage for stage, name in taken.items() if name == other)
            click.echo(f"  takes {shared} from {other}")
    click.echo(f"{len(sweep.keyed)} runs; then {sweep.comparison}")


def run(
    sweep: "Sweep",
    manifest: Path,
    overs: tuple[str, ...],
    overrides: tuple[str, ...],
    env_file: Path | None,
    *,
    yes: bool,
) -> dict[str, str]:
    """Why some variants failed, by name."""
    from bitnet_cli.pipeline.engine import go_on_command
    from bitnet_cli.pipeline.stop_signals import end_as_ctrl_c
    from bitnet_cli.sweeping.sweep import launcher_of, run_sweep
    from bitnet_cli.sweeping.worker import Job

    again = go_on_command(manifest, overrides, env_file).replace("bitnet run", "bitnet sweep", 1)
    base = sweep.opened.manifest.run.name
    # Of earlier sweeps: what their fingerprints say is the same is taken from them, too.
    earlier = sorted(found.name for found in sweep.own.parent.glob(f"{glob.escape(base)}-*") if found != sweep.own)
    job = Job(
        manifest=manifest.absolute(),
        overrides=overrides,
        env_file=None if env_file is None else env_file.absolute(),
        yes=yes,
        runs=tuple(dict.fromkeys((base, *(each.variant.name for each in sweep.keyed), *earlier))),
        folder=sweep.own,
        cwd=Path.cwd(),
        again=shlex.join([*shlex.split(again), *(part for over in overs for part in ("--over", over))]),
    )
    launcher = launcher_of(sweep.opened)
    count = launcher.workers
    click.echo(f"{len(sweep.keyed)} runs on {count} worker{'s' if count > 1 else ''}; each tells more in {sweep.own}")
    with end_as_ctrl_c():
        return asyncio.run(run_sweep(sweep, job, launcher, click.echo))
