"""Where runs live: the store contract, the plugin seam, and the stores: this machine, Google Drive, S3, fsspec."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitnet_storage.config import FsspecStoreConfig, GDriveStoreConfig, LocalStoreConfig, S3StoreConfig
    from bitnet_storage.contract import DurableStore, Objects, Snapshot, StorageError, Store, StorePlugin
    from bitnet_storage.hookspecs import hookimpl
    from bitnet_storage.local import LocalStore
    from bitnet_storage.names import run_name_problem
    from bitnet_storage.synced import SyncedStore

__all__ = [
    "DurableStore",
    "FsspecStoreConfig",
    "GDriveStoreConfig",
    "LocalStore",
    "LocalStoreConfig",
    "Objects",
    "S3StoreConfig",
    "Snapshot",
    "StorageError",
    "Store",
    "StorePlugin",
    "SyncedStore",
    "hookimpl",
    "run_name_problem",
]

_HOMES = {
    "DurableStore": "contract",
    "FsspecStoreConfig": "config",
    "GDriveStoreConfig": "config",
    "LocalStore": "local",
    "LocalStoreConfig": "config",
    "Objects": "contract",
    "S3StoreConfig": "config",
    "Snapshot": "contract",
    "StorageError": "contract",
    "Store": "contract",
    "StorePlugin": "contract",
    "SyncedStore": "synced",
    "hookimpl": "hookspecs",
    "run_name_problem": "names",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"bitnet_storage.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'bitnet_storage' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
