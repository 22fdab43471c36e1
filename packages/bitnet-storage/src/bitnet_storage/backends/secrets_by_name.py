"""Secrets by reference: the manifest names an environment variable, never the value."""

import os

from bitnet_storage.contract import StorageError


def secret(name: str, asked_by: str) -> str:
    """The variable's value; `asked_by` is the setting. Raises StorageError where it isn't set."""
    value = os.environ.get(name, "").strip()
    if not value:
        raise StorageError(
            f"{asked_by}: the environment variable {name} is not set", f"export {name}=..., or put it in .env"
        )
    return value
