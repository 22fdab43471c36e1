"""The plugin seam of bitnet-storage: how a package brings a store.

In your package, point the entry-point group ``bitnet`` at a module and write there::

    from bitnet_storage.hookspecs import hookimpl

    @hookimpl
    def bitnet_stores():
        return [StorePlugin(name="mine", options=MyOptions, open=open_mine)]

The manifest then says ``[store] kind = "mine"``.
"""

from collections.abc import Iterable

import pluggy

from bitnet_storage.contract import StorePlugin

API_VERSION = 1

hookspec = pluggy.HookspecMarker("bitnet")
hookimpl = pluggy.HookimplMarker("bitnet")


@hookspec
def bitnet_stores() -> Iterable[StorePlugin]:
    """Return the stores that this package brings, as frozen records; import nothing heavy."""
    raise AssertionError("a specification is never called")
