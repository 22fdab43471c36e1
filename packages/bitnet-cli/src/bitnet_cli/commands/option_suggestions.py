"""What a shell offers after an option: stages, exporters, keys of the manifest, manifests in this folder."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def stage(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """One stage."""
    from bitnet_cli.manifest import STAGES

    return _beginning(STAGES, typed)


def several(names: Callable[[], Iterable[str]]) -> Completer:
    """Names with commas between them, each once: ``train,ev`` gives ``train,evaluate``."""

    def complete(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
        before, comma, last = typed.rpartition(",")
        taken = before.split(",")
        return [
            CompletionItem(f"{before}{comma}{name}") for name in names() if name.startswith(last) and name not in taken
        ]

    return complete


def stages() -> Iterable[str]:
    from bitnet_cli.manifest import STAGES

    return STAGES


def exporters() -> Iterable[str]:
    """Those that are installed."""
    from bitnet_cli.plugins.load import load_plugins

    return load_plugins().exporters


def setting(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """``KEY=`` with what the key is; after ``KEY=`` the values of one that takes only some."""
    from bitnet_cli.manifest.json_schema import manifest_schema
    from bitnet_cli.plugins.load import load_plugins

    found: dict[str, Mapping[str, Any]] = {}
    for key, schema in _keys(manifest_schema(load_plugins())):
        found.setdefault(key, schema)
    key, equals, value = typed.partition("=")
    if equals:
        choices = found.get(key, {}).get("enum", ())
        return [CompletionItem(f"{key}={each}") for each in choices if str(each).startswith(value)]
    return [
        CompletionItem(f"{each}=", help=str(schema.get("description", "")))
        for each, schema in sorted(found.items())
        if each.startswith(key)
    ]


def manifest(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """TOML files, here and in ``manifests/``, and of the folder that is being typed."""
    folder = Path(typed) if typed.endswith("/") else Path(typed).parent
    places = [folder, *([Path("manifests")] if not typed else [])]
    files = sorted(
        {path.as_posix() for place in places if place.is_dir() for path in place.glob("*.toml")} - {"pyproject.toml"}
    )
    folders = sorted(f"{path.as_posix()}/" for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    plain = typed.removeprefix("./")
    lead = typed[: len(typed) - len(plain)]
    visible = [name for name in (*files, *folders) if not Path(name).name.startswith(".")]
    return [CompletionItem(lead + name) for name in visible if name.startswith(plain)]


def run_folder(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Run folders below ``runs/``, or below the folder that is being typed; else whatever the shell finds."""
    from bitnet_cli.run_folder import is_run_folder

    folder = Path("runs") if "/" not in typed else Path(typed.rpartition("/")[0] or "/")
    found = sorted(path.as_posix() for path in folder.iterdir() if is_run_folder(path)) if folder.is_dir() else []
    runs = _beginning(found, typed)
    return runs or [CompletionItem(typed, type="file")]


def _beginning(names: Iterable[str], typed: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if name.startswith(typed)]


def _keys(schema: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(dotted key, its schema) of every value; of a table that a ``kind`` chooses, the keys of all kinds."""
    for each in schema.get("anyOf", ()):
        yield from _keys(each, place)
    for name, inner in schema.get("properties", {}).items():
        key = f"{place}{name}"
        if "properties" in inner or any("properties" in each for each in inner.get("anyOf", ())):
            yield from _keys(inner, f"{key}.")
        elif place:
            yield key, inner
