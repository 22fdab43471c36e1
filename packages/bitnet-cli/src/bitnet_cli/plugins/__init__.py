"""Plugins: found and checked by `load`, listed by `catalog`."""

from bitnet_cli.plugins.catalog import Plugins
from bitnet_cli.plugins.load import load_plugins

__all__ = ["Plugins", "load_plugins"]
