"""What bitnet-storage brings to the plugin system."""

from collections.abc import Iterable

from bitnet_storage.config import LocalStoreConfig
from bitnet_storage.contract import Store, StorePlugin
from bitnet_storage.hookspecs import hookimpl


def _open_local(options: LocalStoreConfig) -> Store:
    from bitnet_storage.local import LocalStore

    return LocalStore(options)


@hookimpl
def bitnet_stores() -> Iterable[StorePlugin]:
    return [
        StorePlugin(
            name="local",
            options=LocalStoreConfig,
            open=_open_local,
            summary="folders of this machine or of a mounted drive",
        )
    ]
