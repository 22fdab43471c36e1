"""The ``[collect]`` section as the collector takes it: words that stand for other parts of the manifest filled in."""

from typing import TYPE_CHECKING

import attrs

from bitnet_cli.errors import UserError
from bitnet_providers.config import BASELINE_PROMPTS, CollectConfig

if TYPE_CHECKING:
    from bitnet_cli.manifest import Manifest


def uses_baseline(manifest: "Manifest") -> bool:
    return manifest.collect is not None and manifest.collect.prompts == BASELINE_PROMPTS


def collect_settings(manifest: "Manifest") -> CollectConfig:
    """Raises UserError where there is no baseline to take prompts from."""
    config = manifest.collect
    assert config is not None
    if not uses_baseline(manifest):
        return config
    if manifest.baseline is None:
        raise UserError(
            'collect.prompts = "baseline" takes the prompts of [baseline], and there is no such section  '
            "→ add one, or name a file"
        )
    most = [limit for limit in (config.max_prompts, manifest.baseline.max_prompts) if limit is not None]
    return attrs.evolve(config, prompts=manifest.baseline.prompts, max_prompts=min(most))
