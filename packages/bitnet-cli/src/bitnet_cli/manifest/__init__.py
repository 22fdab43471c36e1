"""Manifests: TOML in, a frozen `Manifest` out, or a `UserError` that names every problem with its fix."""

from typing import TYPE_CHECKING

from bitnet_core.lazy import lazy_names

if TYPE_CHECKING:
    from bitnet_cli.manifest.load import load_manifest
    from bitnet_cli.manifest.resolve import resolved_toml
    from bitnet_cli.manifest.schema import Manifest, RunConfig, Tagged
    from bitnet_cli.manifest.stage_facts import STAGES

__all__ = ["STAGES", "Manifest", "RunConfig", "Tagged", "load_manifest", "resolved_toml"]

lazy_names(
    globals(),
    {
        "load": ("load_manifest",),
        "resolve": ("resolved_toml",),
        "schema": (
            "Manifest",
            "RunConfig",
            "Tagged",
        ),
        "stage_facts": ("STAGES",),
    },
)
