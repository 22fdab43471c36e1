"""The section ``[export]``: exporters by name, and a table of options for each (``[export.gguf]``)."""

from typing import TYPE_CHECKING, Any

import cattrs

from bitnet_cli.manifest.files import Table
from bitnet_cli.manifest.schema import Exports
from bitnet_cli.manifest.structure import structure
from bitnet_cli.manifest.suggest import did_you_mean
from bitnet_cli.manifest.values import got, key

if TYPE_CHECKING:
    from bitnet_cli.plugins import Plugins


def exports_section(
    table: Table, plugins: "Plugins", converter: cattrs.Converter, problems: list[str]
) -> Exports | None:
    """The section's record; what is wrong is appended to `problems` and None returned.

    Options of an exporter that `kinds` leaves out are checked and kept back, so that a manifest may extend another.
    """
    before = len(problems)
    kinds = _kinds(table.get("kinds"), plugins, problems)
    options: dict[str, Any] = {}
    for name, value in table.items():
        if name == "kinds":
            continue
        if name not in plugins.exporters:
            known = ("kinds", *plugins.exporters)
            problems.append(f"export.{key(name)}: unknown key; {did_you_mean(str(name), known)}")
        elif not isinstance(value, dict):
            problems.append(f"export.{name}: expected a table, got {got(value)}  → write [export.{name}]")
        else:
            options[name] = structure(value, plugins.exporters[name].options, converter, f"export.{name}", problems)
    for kind in kinds:
        if kind not in options and kind in plugins.exporters:
            options[kind] = structure({}, plugins.exporters[kind].options, converter, f"export.{kind}", problems)
    return Exports(kinds, {kind: options[kind] for kind in kinds}) if len(problems) == before else None


def _kinds(value: Any, plugins: "Plugins", problems: list[str]) -> tuple[str, ...]:
    installed = ", ".join(sorted(plugins.exporters)) or "none"
    if value is None:
        problems.append(f'export.kinds: missing  → write kinds = ["..."] with some of: {installed}')
        return ()
    if not isinstance(value, list) or not all(isinstance(kind, str) for kind in value):
        problems.append(f"export.kinds: expected an array of strings, got {got(value)}  → choose of: {installed}")
        return ()
    kinds = tuple(str(kind) for kind in value)
    if not kinds or len(set(kinds)) != len(kinds):
        problems.append(f"export.kinds: name each exporter once, and at least one  → choose of: {installed}")
    problems += [
        f"export.kinds: {plugins.unknown('exporter', kind)}" for kind in kinds if kind not in plugins.exporters
    ]
    return kinds
