"""The store of this machine: each run is a folder under one root, and that folder is the durable place."""

from collections.abc import Mapping
from pathlib import Path

import attrs

from bitnet_storage.backends import local_folders
from bitnet_storage.config import LocalStoreConfig


@attrs.frozen
class LocalStore:
    """A `Store` whose working folders are the durable place: nothing is copied."""

    options: LocalStoreConfig

    def run_folder(self, run_name: str) -> Path:
        """``root/run_name``, made if needed and proved writable.

        Raises StorageError for a name that is not one folder's name, a run folder that is a link out of the root, and
        a place that can't be written (read-only, not a folder, disk full).
        """
        return local_folders.run_folder(self.options.root, run_name, "store.root")

    def cache_environment(self) -> Mapping[str, str]:
        """``HF_HOME``, ``HF_DATASETS_CACHE`` and ``TORCH_HOME`` under `cache_root`, made if needed; empty without one.

        Raises StorageError where the cache can't be written.
        """
        return local_folders.cache_environment(self.options.cache_root)

    def free_bytes(self) -> int:
        """Bytes that this user can still write on the disk of the root, which need not exist yet."""
        return local_folders.free_bytes(self.options.root, "store.root")
