"""The plugin seam of bitnet-providers: how a package brings a teacher.

In your package, point the entry-point group ``bitnet`` at a module and write there::

    from bitnet_providers.hookspecs import hookimpl

    @hookimpl
    def bitnet_teachers():
        return [TeacherPlugin(name="mine", options=MyOptions, capabilities=..., open=open_mine)]

The manifest then says ``[teacher] kind = "mine"``. Listing plugins calls this hook: import SDKs inside ``open``.
"""

from collections.abc import Iterable

import pluggy

from bitnet_providers.contract import TeacherPlugin

API_VERSION = 1
"""The version of `TeacherPlugin` and of the hook; a plugin made for a newer one is refused with the fix."""

hookspec = pluggy.HookspecMarker("bitnet")
hookimpl = pluggy.HookimplMarker("bitnet")


@hookspec
def bitnet_teachers() -> Iterable[TeacherPlugin]:
    """Return the teachers that this package brings, as frozen records; import nothing heavy."""
    raise AssertionError("a specification is never called")
