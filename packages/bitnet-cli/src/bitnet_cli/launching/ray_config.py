"""``[cluster] kind = "ray"``; loads no Ray."""

import attrs

from bitnet_cli.contract import ElsewhereConfig
from bitnet_core.settings import setting


@attrs.frozen(kw_only=True)
class RayConfig(ElsewhereConfig):
    """``[cluster] kind = "ray"``: workers on the machines of a Ray cluster."""

    address: str = setting("", help='of the cluster, HOST:PORT or "auto"; empty: Ray is started on this machine')
