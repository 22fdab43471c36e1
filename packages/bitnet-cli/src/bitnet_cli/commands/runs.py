"""`bitnet runs`: what a store has, and moving it. The manifest says which store, or --store a folder."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from attrs import asdict

from bitnet_cli.environment import env_file_option, load_environment
from bitnet_cli.errors import UserError, user_errors

if TYPE_CHECKING:
    from bitnet_cli.commands.stored_runs import StoredRun
    from bitnet_storage.contract import DurableStore, Store


def where(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which store."""
    for option in (
        env_file_option,
        click.option(
            "--work",
            type=click.Path(path_type=Path),
            metavar="DIR",
            help="With --store: runs are worked on in DIR, and the store keeps their snapshots.",
        ),
        click.option("--store", type=click.Path(path_type=Path), metavar="DIR", help="The folder that holds the runs."),
        click.option(
            "-m",
            "--manifest",
            type=click.Path(path_type=Path),
            metavar="M.toml",
            help="The manifest whose store it is.",
        ),
    ):
        command = option(command)
    return command


@contextmanager
def opened(place: dict[str, Any]) -> "Iterator[tuple[Store, Path | None]]":
    """The store, and the folder of its runs where they are worked on in place. Errors are printed, exit code 2."""
    from bitnet_storage.contract import StorageError

    with user_errors(StorageError):
        yield _open(**place)


def _open(
    manifest: Path | None, store: Path | None, work: Path | None, env_file: Path | None
) -> "tuple[Store, Path | None]":
    from bitnet_cli.environment import export
    from bitnet_cli.manifest import load_manifest
    from bitnet_cli.plugins.load import load_plugins
    from bitnet_storage.config import LocalStoreConfig

    if manifest is not None and store is not None:
        raise UserError("--manifest and --store both name a store", "give one of them")
    if manifest is None and store is None:
        if not Path("runs").is_dir():
            raise UserError(
                "nothing says which store, and there is no folder runs here", "add -m M.toml or --store DIR"
            )
        store = Path("runs")
    environment = load_environment(env_file)
    plugins = load_plugins(environment)
    if manifest is not None:
        tagged = load_manifest(manifest, (), plugins, environment).store
        export(environment)  # the variables of the store's keys
        return plugins.require_store(tagged.kind).open(tagged.options), getattr(tagged.options, "root", None)
    assert store is not None
    if not store.is_dir():
        raise UserError(f"--store: there is no folder {store}", "name one that is there")
    if work is None and any(store.glob("*/snapshots/*.json")):
        raise UserError(
            f"--store: {store} holds runs that were pushed there",
            "add --work DIR, where their working folders are or shall be",
        )
    options = LocalStoreConfig(root=store.absolute(), work=None if work is None else work.absolute())
    return plugins.require_store("local").open(options), options.root


def durable(store: "Store") -> "DurableStore":
    from bitnet_storage.contract import DurableStore

    if not isinstance(store, DurableStore):
        raise UserError(
            "this store keeps its runs where they are worked on: there is nothing to push or pull", _OTHER_STORE
        )
    return store


_OTHER_STORE = "name a store with a durable place: --store DIR --work DIR, or a manifest's with -m M.toml"
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


NAME = click.argument("name", metavar="RUN")


@click.group("runs")
def runs() -> None:
    """List, show, compare, check, pull and push the runs of a store.

    \b
    Examples:
      bitnet runs ls --store runs
      bitnet runs show colab -m manifests/colab.toml
      bitnet runs diff first second --store runs     settings and figures that differ
      bitnet runs verify first --store runs          every file against its digest
      bitnet runs pull colab -m manifests/colab.toml
      bitnet runs push colab -m manifests/colab.toml
      bitnet runs ls --store /content/drive/MyDrive/bitnet_poc/runs --work /content/runs
    """


@runs.command("ls", short_help="List the runs: date, size, and the stages that are done.")
@where
@AS_JSON
def list_command(as_json: bool, **place: Any) -> None:
    """List the runs: when they were written, how big they are, which stages are done.

    \b
    Examples:
      bitnet runs ls --store runs
      bitnet runs ls -m manifests/colab.toml --json
    """
    with opened(place) as (store, root):
        from bitnet_cli.commands.stored_runs import list_runs

        found = list_runs(store, root)
    if as_json:
        click.echo(json.dumps({"runs": [_listed(run) for run in found]}, indent=2))
        return
    width = max([4, *(len(run.name) for run in found)])
    for run in found:
        click.echo(f"{run.name:<{width}}  {run.written[:19]}  {run.size / 1e6:>9,.1f} MB  {' '.join(run.stages)}")
    if not found:
        click.echo("no runs there", err=True)


@runs.command("show")
@NAME
@where
@AS_JSON
def show_command(name: str, as_json: bool, **place: Any) -> None:
    """Show one run: its place and size, its stages with their results.

    \b
    Example:
      bitnet runs show quickstart --store runs
    """
    with opened(place) as (store, root):
        from bitnet_cli.commands.stored_runs import find_run, records

        run = find_run(store, root, name)
        found = records(store, run)
    if as_json:
        stages = [{"stage": d.stage, "finished": d.finished, "seconds": d.seconds, **d.summary} for d in found.done]
        told = {**_listed(run), "folders": run.by_folder(), "stages": stages, "settings": found.settings}
        click.echo(json.dumps(told, indent=2, default=str))
        return
    pushed = "" if run.snapshot is None else f", generation {run.snapshot.generation}, pushed by {run.snapshot.host}"
    click.echo(f"{run.name}: {run.place}\nwritten {run.written[:19]} UTC{pushed}")
    sizes = ", ".join(f"{folder} {size / 1e6:,.1f}" for folder, size in run.by_folder().items())
    click.echo(f"{len(run.files)} files, {run.size / 1e6:,.1f} MB: {sizes}")
    for done in found.done:
        click.echo(f"{done.stage:<9} {done.finished[:19]} {done.seconds:>9,.1f} s  {done.summary.get('headline', '')}")


@runs.command("diff", short_help="Show how two runs differ, in settings and in figures.")
@click.argument("one", metavar="RUN_A")
@click.argument("other", metavar="RUN_B")
@where
@AS_JSON
def diff_command(one: str, other: str, as_json: bool, **place: Any) -> None:
    """Show how two runs differ: settings first, then the stages' figures (times left out).

    \b
    Example:
      bitnet runs diff first second --store runs
    """
    with opened(place) as (store, root):
        from bitnet_cli.commands.stored_runs import differences, find_run, records, results

        first, second = (records(store, find_run(store, root, name)) for name in (one, other))
        told = {
            "settings": differences(first.settings, second.settings),
            "results": differences(results(first), results(second)),
        }
    if as_json:
        click.echo(json.dumps({"runs": [one, other], **told}, indent=2, default=str))
        return
    for title, found in told.items():
        click.echo(f"{title}: {'' if found else 'the same'}".rstrip())
        for name, (before, after) in found.items():
            click.echo(f"  {name}: {_value(before)} → {_value(after)}")


@runs.command("pull", short_help="Bring the working folder of RUN up to the newest snapshot.")
@NAME
@where
def pull_command(name: str, **place: Any) -> None:
    """Bring the working folder of RUN up to the store's newest snapshot, every byte checked.

    \b
    Example:
      bitnet runs pull colab -m manifests/colab.toml
    """
    with opened(place) as (store, root):
        from bitnet_cli.commands.stored_runs import find_run
        from bitnet_cli.pipeline.run_lock import run_lock

        source = durable(store)
        find_run(store, root, name)
        folder = store.run_folder(name)
        with run_lock(folder):
            moved = source.pull(name, notify=lambda text: click.echo(text, err=True))
    click.echo(f"{moved.files} files, {moved.size / 1e6:,.1f} MB → {folder}")


@runs.command("push")
@NAME
@where
def push_command(name: str, **place: Any) -> None:
    """Make the working folder of RUN the store's newest snapshot. Refused while another machine is at work on it.

    \b
    Example:
      bitnet runs push colab -m manifests/colab.toml
    """
    with opened(place) as (store, _):
        from bitnet_cli.pipeline.stop_signals import end_as_ctrl_c
        from bitnet_cli.run_folder import is_run_folder

        target = durable(store)
        folder = store.run_folder(name)
        if not is_run_folder(folder):
            if not any(folder.iterdir()):
                folder.rmdir()
            raise UserError(f"{folder} is no run folder: there is nothing to push", "run it first, or name another run")
        with end_as_ctrl_c(), target.lease(name, notify=lambda text: click.echo(text, err=True)):
            moved = target.push(name)
    click.echo(f"{moved.files} files, {moved.size / 1e6:,.1f} MB → {target.location}, generation {moved.generation}")


@runs.command("verify", short_help="Check every file of RUN against the digest that was written with it.")
@NAME
@where
@AS_JSON
def verify_command(name: str, as_json: bool, **place: Any) -> None:
    """Check every file of RUN against the digest that was written with it: results, checkpoints, what was paid for.

    Of a store with a durable place its newest snapshot is checked too. Exit code 1: something is damaged.

    \b
    Examples:
      bitnet runs verify quickstart --store runs
      bitnet runs verify colab -m manifests/colab.toml --json
    """
    with opened(place) as (store, root):
        from bitnet_cli.commands.stored_runs import Checked, damaged_objects, find_run, verify

        run = find_run(store, root, name)
        checked: list[Checked] = []
        if run.snapshot is not None:
            wrong = tuple(damaged_objects(store, run))
            checked.append(
                Checked(f"snapshot {run.snapshot.generation} in {run.place}", len(run.files), run.size, wrong)
            )
        folder = Path(run.place) if run.snapshot is None else store.run_folder(name)
        checked += verify(folder)
    problems = [problem for each in checked for problem in each.problems]
    if as_json:
        click.echo(json.dumps({"run": name, "checked": [asdict(each) for each in checked]}, indent=2))
    else:
        for each in checked:
            state = "damaged" if each.problems else "ok"
            click.echo(f"{state:<8} {each.what}  ({each.files} files, {each.size / 1e6:,.1f} MB)")
        for problem in problems:
            click.echo(
                f"{problem}  → put it back from a copy, or make it again (bitnet run ... --from STAGE)", err=True
            )
    sys.exit(1 if problems else 0)


def _listed(run: "StoredRun") -> dict[str, Any]:
    """What `ls --json` prints of a run."""
    return {
        "name": run.name,
        "place": run.place,
        "written": run.written,
        "files": len(run.files),
        "bytes": run.size,
        "stages": run.stages,
        "generation": None if run.snapshot is None else run.snapshot.generation,
        "host": None if run.snapshot is None else run.snapshot.host,
    }


def _value(value: Any) -> str:
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
