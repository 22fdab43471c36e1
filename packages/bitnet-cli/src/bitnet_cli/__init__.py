"""The command ``bitnet``, and `run`, which does the same from Python."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitnet_cli.errors import UserError
    from bitnet_cli.from_python import RunFailedError, run

__all__ = ["RunFailedError", "UserError", "run"]

_HOMES = {"RunFailedError": "from_python", "UserError": "errors", "run": "from_python"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
