"""The plugin seam of bitnet-cli: how a package brings a launcher.

In your package, point the entry-point group ``bitnet`` at a module and write there::

    from bitnet_cli.hookspecs import hookimpl

    @hookimpl
    def bitnet_launchers():
        return [LauncherPlugin(name="mine", options=MyOptions, open=open_mine)]

The manifest then says ``[cluster] kind = "mine"``. Listing plugins calls this hook: import SDKs inside ``open``.
"""

from collections.abc import Iterable

import pluggy

from bitnet_cli.contract import LauncherPlugin

API_VERSION = 1

hookspec = pluggy.HookspecMarker("bitnet")
hookimpl = pluggy.HookimplMarker("bitnet")


@hookspec
def bitnet_launchers() -> Iterable[LauncherPlugin]:
    """Return the launchers that this package brings, as frozen records; import nothing heavy."""
    raise AssertionError("a specification is never called")
