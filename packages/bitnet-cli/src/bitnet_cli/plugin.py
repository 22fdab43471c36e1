"""What bitnet-cli brings to the plugin system."""

from collections.abc import Iterable

from bitnet_cli.contract import ClusterConfig, LauncherPlugin
from bitnet_cli.hookspecs import hookimpl
from bitnet_cli.launching.ray import RayConfig
from bitnet_core.lazy import lazily


@hookimpl
def bitnet_launchers() -> Iterable[LauncherPlugin]:
    return [
        LauncherPlugin(
            name="local",
            options=ClusterConfig,
            open=lazily("bitnet_cli.launching.local:LocalLauncher"),
            summary="processes on this machine",
        ),
        LauncherPlugin(
            name="ray",
            options=RayConfig,
            open=lazily("bitnet_cli.launching.ray:RayLauncher"),
            summary="actors of a Ray cluster, or of a Ray that is started on this machine",
            requires=("ray",),
            install="pip install 'bitnet-cli[ray]'",
        ),
    ]
