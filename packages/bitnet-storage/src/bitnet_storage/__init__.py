"""Where runs live: the store contract, the plugin seam, and the store of this machine."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitnet_storage.config import LocalStoreConfig
    from bitnet_storage.contract import StorageError, Store, StorePlugin
    from bitnet_storage.hookspecs import hookimpl
    from bitnet_storage.local import LocalStore
    from bitnet_storage.names import run_name_problem

__all__ = [
    "LocalStore",
    "LocalStoreConfig",
    "StorageError",
    "Store",
    "StorePlugin",
    "hookimpl",
    "run_name_problem",
]

_HOMES = {
    "LocalStore": "local",
    "LocalStoreConfig": "config",
    "StorageError": "contract",
    "Store": "contract",
    "StorePlugin": "contract",
    "hookimpl": "hookspecs",
    "run_name_problem": "names",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"bitnet_storage.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'bitnet_storage' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
