"""A manifest, read with this process's variables and the installed plugins."""

from collections.abc import Sequence
from pathlib import Path

import attrs

from bitnet_cli.environment import export, load_environment
from bitnet_cli.manifest.load import load_manifest
from bitnet_cli.manifest.manifest import Manifest
from bitnet_cli.plugins.catalog import Plugins
from bitnet_cli.plugins.load import load_plugins


@attrs.frozen
class Opened:
    """What a command that is given a manifest works with."""

    manifest: Manifest
    plugins: Plugins
    environment: dict[str, str]
    """This process's variables, and those of the ``.env`` file."""


def open_manifest(path: Path, overrides: Sequence[str] = (), env_file: Path | None = None) -> Opened:
    """Read and check it; `overrides` are the texts of ``--set``. Raises UserError with every problem.

    Puts the variables of `env_file` (default: ``.env``) into this process's environment where they are not set: the
    teachers' and the stores' clients read them there.
    """
    environment = load_environment(env_file)
    plugins = load_plugins(environment)
    manifest = load_manifest(path, overrides, plugins, environment)
    export(environment)
    return Opened(manifest, plugins, environment)
