"""What bitnet-storage brings to the plugin system."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from bitnet_storage.config import (
    FsspecStoreConfig,
    GDriveStoreConfig,
    LocalStoreConfig,
    S3StoreConfig,
    WorkingFolderConfig,
)
from bitnet_storage.contract import Objects, StorageError, Store, StorePlugin
from bitnet_storage.hookspecs import hookimpl
from bitnet_storage.lazy import lazily

_DRIVE_INSTALL = "pip install 'bitnet-storage[gdrive]'"


def _open_local(options: LocalStoreConfig) -> Store:
    if options.work is None:
        if options.keep_checkpoints is not None:
            raise StorageError(
                "store.keep_checkpoints: counts only with store.work, where the copies are",
                "set train.keep_checkpoints instead, which is about the run folder itself",
            )
        from bitnet_storage.backends.local import LocalStore

        return LocalStore(options)
    from bitnet_storage.backends.local import make_writable
    from bitnet_storage.backends.mounted_folder import FolderObjects

    root, work = options.root.resolve(), options.work.resolve()
    if root == work or root.is_relative_to(work) or work.is_relative_to(root):
        raise StorageError(
            f"store.work: {options.work} and store.root ({options.root}) lie in each other",
            "leave store.work out to work in store.root itself, or name a folder of another disk",
        )
    make_writable(options.root, "store.root")
    return _synced(lambda _: FolderObjects(options.root), options)


def _open_gdrive(options: GDriveStoreConfig) -> Store:
    if options.access == "mount":
        return _synced(lazily("bitnet_storage.backends.mounted_folder:open_mount"), options)
    try:
        from bitnet_storage.backends.drive_api import open_drive
    except ImportError as error:
        raise StorageError(f'store: access = "api" needs {error.name}', _DRIVE_INSTALL) from error
    return _synced(open_drive, options)


def _synced(open_objects: Callable[[Any], Objects], options: WorkingFolderConfig) -> Store:
    from bitnet_storage.sync.synced_store import SyncedStore

    assert options.work is not None
    return SyncedStore(
        objects=open_objects(options),
        work=options.work,
        cache_root=options.cache_root,
        push_every=options.push_every,
        keep_checkpoints=options.keep_checkpoints,
        lease_seconds=options.lease_seconds,
    )


_open_s3: Callable[[S3StoreConfig], Store] = partial(_synced, lazily("bitnet_storage.backends.s3:open_s3"))
_open_fsspec: Callable[[FsspecStoreConfig], Store] = partial(
    _synced, lazily("bitnet_storage.backends.fsspec:open_fsspec")
)


@hookimpl
def bitnet_stores() -> Iterable[StorePlugin]:
    return [
        StorePlugin(
            name="local",
            options=LocalStoreConfig,
            open=_open_local,
            summary="folders of this machine or of a mounted drive",
        ),
        StorePlugin(
            name="s3",
            options=S3StoreConfig,
            open=_open_s3,
            summary="a bucket of Amazon S3 or of a service that speaks its language",
            requires=("obstore",),
            install="pip install 'bitnet-storage[s3]'",
        ),
        StorePlugin(
            name="gdrive",
            options=GDriveStoreConfig,
            open=_open_gdrive,
            summary="Google Drive: mounted in Colab, or by its API (which needs the extra gdrive)",
        ),
        StorePlugin(
            name="fsspec",
            options=FsspecStoreConfig,
            open=_open_fsspec,
            summary="any other place that fsspec has a filesystem for, by its URL",
            requires=("fsspec",),
            install="pip install 'bitnet-storage[fsspec]'",
        ),
    ]
