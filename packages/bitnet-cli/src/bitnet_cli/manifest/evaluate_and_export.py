"""Sections with a table for each plugin: ``[evaluate]`` with its benchmarks, ``[export]`` with its exporters."""

from typing import TYPE_CHECKING, Any

import attrs
import cattrs

from bitnet_cli.errors import Problem
from bitnet_cli.manifest.check_values import structure
from bitnet_cli.manifest.manifest import Evaluation, Exports
from bitnet_cli.manifest.toml_files import Table
from bitnet_cli.wording.did_you_mean import did_you_mean
from bitnet_cli.wording.toml_values import got, key
from bitnet_core.config.evaluate import EvaluateConfig

if TYPE_CHECKING:
    from bitnet_cli.plugins.catalog import Plugins


def evaluate_section(
    table: Table, plugins: "Plugins", converter: cattrs.Converter, problems: list[Problem]
) -> Evaluation | None:
    """The section's record; what is wrong is appended to `problems` and None returned.

    Options of a benchmark that `benchmarks` leaves out are checked and kept back, so that a manifest may extend
    another.
    """
    before = len(problems)
    known = attrs.fields_dict(EvaluateConfig)
    own = {name: value for name, value in table.items() if name in known or not _is_table(name, value, plugins)}
    tables = {name: value for name, value in table.items() if name not in own}
    settings = structure(own, EvaluateConfig, converter, "evaluate", problems)
    options: dict[str, Any] = {}
    for name, value in tables.items():
        if name not in plugins.benchmarks:
            problems.append(plugins.unknown("benchmark", name).within(f"[evaluate.{key(name)}]"))
        elif not isinstance(value, dict):
            problems.append(Problem(f"evaluate.{name}: expected a table, got {got(value)}", f"write [evaluate.{name}]"))
        else:
            options[name] = structure(value, plugins.benchmarks[name].options, converter, f"evaluate.{name}", problems)
    if settings is None:
        return None
    for name in settings.benchmarks:
        if name not in plugins.benchmarks:
            problems.append(plugins.unknown("benchmark", name).within("evaluate.benchmarks"))
        elif name not in options:
            options[name] = structure({}, plugins.benchmarks[name].options, converter, f"evaluate.{name}", problems)
    _check_quality(settings, plugins, problems)
    found = {name: options.get(name) for name in settings.benchmarks}
    return Evaluation(settings, found) if len(problems) == before else None


def _is_table(name: str, value: object, plugins: "Plugins") -> bool:
    return name in plugins.benchmarks or isinstance(value, dict)


def _check_quality(settings: EvaluateConfig, plugins: "Plugins", problems: list[Problem]) -> None:
    """The score that the index takes, where the plugin says which it has."""
    name, _, score = settings.qei_quality.partition(".")
    known = plugins.benchmarks[name].scores if name in plugins.benchmarks else ()
    if known and score not in known:
        problems.append(Problem(f'evaluate.qei_quality: {name} has no score "{score}"', did_you_mean(score, known)))


def exports_section(
    table: Table, plugins: "Plugins", converter: cattrs.Converter, problems: list[Problem]
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
            problems.append(Problem(f"export.{key(name)}: unknown key", did_you_mean(str(name), known)))
        elif not isinstance(value, dict):
            problems.append(Problem(f"export.{name}: expected a table, got {got(value)}", f"write [export.{name}]"))
        else:
            options[name] = structure(value, plugins.exporters[name].options, converter, f"export.{name}", problems)
    for kind in kinds:
        if kind not in options and kind in plugins.exporters:
            options[kind] = structure({}, plugins.exporters[kind].options, converter, f"export.{kind}", problems)
    return Exports(kinds, {kind: options[kind] for kind in kinds}) if len(problems) == before else None


def _kinds(value: Any, plugins: "Plugins", problems: list[Problem]) -> tuple[str, ...]:
    installed = ", ".join(sorted(plugins.exporters)) or "none"
    if value is None:
        problems.append(Problem("export.kinds: missing", f'write kinds = ["..."] with some of: {installed}'))
        return ()
    if not isinstance(value, list) or not all(isinstance(kind, str) for kind in value):
        wrong = f"export.kinds: expected an array of strings, got {got(value)}"
        problems.append(Problem(wrong, f"choose of: {installed}"))
        return ()
    kinds = tuple(str(kind) for kind in value)
    if not kinds or len(set(kinds)) != len(kinds):
        wrong = "export.kinds: is empty, or names an exporter twice"
        problems.append(Problem(wrong, f"name each exporter once, and at least one of: {installed}"))
    problems += [
        plugins.unknown("exporter", kind).within("export.kinds") for kind in kinds if kind not in plugins.exporters
    ]
    return kinds
