"""What a run was made with: ``environment.json``. No secrets, no environment variables."""

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnet_cli import run_folder
from bitnet_cli.environment import cpu_name

if TYPE_CHECKING:
    from bitnet_cli.plugins.catalog import Plugins


def record_environment(folder: Path, plugins: "Plugins", anchor: Path) -> None:
    """Write ``environment.json``: git, lock, Python, platform, CPU, packages, plugins.

    `anchor` is where to look for a git repository and a ``uv.lock``: its folder and those above it. The torch device
    joins at the end of the run (`record_device`), if torch was needed at all.
    """
    run_folder.write_json(
        folder / "environment.json",
        {
            "git": git_state(anchor),
            "uv_lock_sha256": lock_digest(anchor),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "cpu": cpu_name(),
            "cpu_count": os.cpu_count(),
            "packages": packages(),
            "plugins": _plugins(plugins),
        },
    )


def record_device(folder: Path) -> None:
    """Add what torch found, where torch was loaded."""
    torch = sys.modules.get("torch")
    path = folder / "environment.json"
    environment = run_folder.read_json(path)
    if torch is None or not isinstance(environment, dict):
        return
    cuda = torch.cuda.is_available()
    environment["torch"] = {
        "version": str(torch.__version__),
        "device": torch.cuda.get_device_name() if cuda else "mps" if torch.backends.mps.is_available() else "cpu",
        "cuda": torch.version.cuda if cuda else None,
        "threads": torch.get_num_threads(),
    }
    run_folder.write_json(path, environment)


def git_state(anchor: Path) -> dict[str, Any] | None:
    """Commit and whether files differ from it; None outside a repository or without git."""
    commit = _git(anchor, "rev-parse", "HEAD")
    if commit is None:
        return None
    changed = _git(anchor, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": bool(changed)}


def _git(anchor: Path, *arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(anchor), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def lock_digest(anchor: Path) -> str | None:
    for folder in (anchor, *anchor.parents):
        lock = folder / "uv.lock"
        if lock.is_file():
            return hashlib.sha256(lock.read_bytes()).hexdigest()
    return None


def packages() -> dict[str, str]:
    """Every installed distribution and its version."""
    found = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
    return dict(sorted(found.items(), key=lambda item: str(item[0]).lower()))


def _plugins(plugins: "Plugins") -> list[dict[str, str]]:
    shown = ("name", "kind", "distribution", "version", "status")
    return [{field: getattr(row, field) for field in shown} for row in plugins.all]
