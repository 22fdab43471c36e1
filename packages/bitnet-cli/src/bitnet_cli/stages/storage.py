"""storage: the run folder, and the cache folders that other libraries are told to use."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnet_cli import run_folder
from bitnet_cli.manifest.stage_needs import STORAGE
from bitnet_cli.stages.stage import Context, Stage
from bitnet_storage.contract import DurableStore

if TYPE_CHECKING:
    from bitnet_cli.manifest import Manifest
    from bitnet_cli.plugins.catalog import Plugins
    from bitnet_storage.contract import Store


def known_folder(manifest: "Manifest") -> Path | None:
    """Where the run folder is or will be, where the store's options say so (`work`, `root`); nothing is made."""
    options = manifest.store.options
    root = getattr(options, "work", None) or getattr(options, "root", None)
    return Path(root) / manifest.run.name if root is not None else None


def prepare_storage(manifest: "Manifest", plugins: "Plugins") -> tuple["Store", Path]:
    """Open the store, make the run folder, and point caches (``HF_HOME`` ...) to where the store wants them.

    Every run needs this before any other stage, and before transformers or torch are imported: they read these
    variables once. Raises StorageError.
    """
    store: Store = plugins.require_store(manifest.store.kind).open(manifest.store.options)
    folder = store.run_folder(manifest.run.name)
    run_folder.make_folders(folder)
    os.environ.update(store.cache_environment())
    # transformers draws a bar of its own for each model it opens, in the middle of the stage's; its loads take a second
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    return store, folder


def run(context: Context) -> dict[str, Any]:
    """Write down where things are and how much fits. The folders are there already: see `prepare_storage`."""
    caches = dict(context.store.cache_environment())
    for path in caches.values():
        Path(path).mkdir(parents=True, exist_ok=True)
    free = context.store.free_bytes()
    durable = context.store.location if isinstance(context.store, DurableStore) else str(context.folder)
    run_folder.write_json(
        context.folder / run_folder.STORAGE,
        {
            "kind": context.manifest.store.kind,
            "run_folder": str(context.folder),
            "durable_place": durable,
            "folders": list(run_folder.FOLDERS),
            "cache_environment": caches,
            "free_bytes": free,
        },
    )
    return {"headline": f"{free / 1e9:.1f} GB free", "free_bytes": free}


STAGE = Stage(
    facts=STORAGE, run=run, writes=(run_folder.STORAGE,), sections=("store", "run.name"), paths_as_written=True
)
