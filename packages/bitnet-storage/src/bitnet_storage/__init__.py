"""Where runs live: the store contract, the plugin seam, and the stores: this machine, Google Drive, S3, fsspec."""

from typing import TYPE_CHECKING

from bitnet_storage.lazy import lazy_names

if TYPE_CHECKING:
    from bitnet_storage.backends.local import LocalStore
    from bitnet_storage.config import FsspecStoreConfig, GDriveStoreConfig, LocalStoreConfig, S3StoreConfig
    from bitnet_storage.contract import DurableStore, Objects, Snapshot, StorageError, Store, StorePlugin
    from bitnet_storage.hookspecs import hookimpl
    from bitnet_storage.names_and_paths import run_name_problem
    from bitnet_storage.sync.synced_store import SyncedStore

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

lazy_names(
    globals(),
    {
        "backends.local": ("LocalStore",),
        "config": (
            "FsspecStoreConfig",
            "GDriveStoreConfig",
            "LocalStoreConfig",
            "S3StoreConfig",
        ),
        "contract": (
            "DurableStore",
            "Objects",
            "Snapshot",
            "StorageError",
            "Store",
            "StorePlugin",
        ),
        "hookspecs": ("hookimpl",),
        "names_and_paths": ("run_name_problem",),
        "sync.synced_store": ("SyncedStore",),
    },
)
