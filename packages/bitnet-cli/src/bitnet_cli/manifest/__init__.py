"""Manifests: TOML in, a frozen `Manifest` out, or a `UserError` that names every problem with its fix."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitnet_cli.manifest.load import load_manifest
    from bitnet_cli.manifest.resolve import resolved_toml
    from bitnet_cli.manifest.schema import Manifest, RunConfig, Tagged
    from bitnet_cli.manifest.stages import STAGES

__all__ = ["STAGES", "Manifest", "RunConfig", "Tagged", "load_manifest", "resolved_toml"]

_HOMES = {
    "STAGES": "stages",
    "Manifest": "schema",
    "RunConfig": "schema",
    "Tagged": "schema",
    "load_manifest": "load",
    "resolved_toml": "resolve",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"bitnet_cli.manifest.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'bitnet_cli.manifest' has no attribute '{name}'")
