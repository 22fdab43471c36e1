"""What is imported when it is first used. Importing this loads nothing."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib import import_module
from pkgutil import resolve_name
from typing import Any


def lazily(place: str) -> Callable[..., Any]:
    """The function at `place`, ``package.module:name``; each call imports the module first."""
    return partial(_call, place)


def _call(place: str, *args: Any) -> Any:
    return resolve_name(place)(*args)


def lazy_names(package: dict[str, Any], names: Mapping[str, Iterable[str]]) -> None:
    """Give a package, by its ``globals()``, the `names` of each of its modules, imported when asked for (PEP 562).

    A module of another folder stands by its full name.
    """
    own = package["__name__"]
    top = own.partition(".")[0] + "."
    home = {
        name: module if module.startswith(top) else f"{own}.{module}"
        for module, found in names.items()
        for name in found
    }

    def find(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {own!r} has no attribute {name!r}")
        return getattr(import_module(home[name]), name)

    package |= {"__getattr__": find, "__dir__": lambda: sorted(home)}
