"""The options of `bitnet runs` that say which store, and opening it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bitnet_cli.environment import env_file_option, load_environment
from bitnet_cli.errors import UserError, user_errors

if TYPE_CHECKING:
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
    from bitnet_cli.plugins import load_plugins
    from bitnet_storage.config import LocalStoreConfig

    if manifest is not None and store is not None:
        raise UserError("--manifest and --store both name a store  → give one of them")
    if manifest is None and store is None:
        if not Path("runs").is_dir():
            raise UserError(
                "nothing says which store, and there is no folder runs here  → add -m M.toml or --store DIR"
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
        raise UserError(f"--store: there is no folder {store}")
    if work is None and any(store.glob("*/snapshots/*.json")):
        raise UserError(
            f"--store: {store} holds runs that were pushed there  → add --work DIR, where their working folders are or "
            "shall be"
        )
    options = LocalStoreConfig(root=store.absolute(), work=None if work is None else work.absolute())
    return plugins.require_store("local").open(options), options.root


def durable(store: "Store") -> "DurableStore":
    from bitnet_storage.contract import DurableStore

    if not isinstance(store, DurableStore):
        raise UserError("this store keeps its runs where they are worked on: there is nothing to push or pull")
    return store
