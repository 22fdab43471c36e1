"""Manifests: TOML in, a frozen `Manifest` out, or a `UserError` that names every problem with its fix."""

from typing import TYPE_CHECKING

from bitnet_core.lazy import lazy_names

if TYPE_CHECKING:
    from bitnet_cli.manifest.load import load_manifest
    from bitnet_cli.manifest.manifest import Manifest, RunConfig, Tagged
    from bitnet_cli.manifest.stage_needs import STAGES
    from bitnet_cli.manifest.toml_files import resolved_toml

__all__ = ["STAGES", "Manifest", "RunConfig", "Tagged", "load_manifest", "resolved_toml"]

lazy_names(
    globals(),
    {
        "load": ("load_manifest",),
        "toml_files": ("resolved_toml",),
        "manifest": ("Manifest", "RunConfig", "Tagged"),
        "stage_needs": ("STAGES",),
    },
)
