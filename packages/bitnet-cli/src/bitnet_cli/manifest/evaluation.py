"""The section ``[evaluate]``: its own settings, and a table of options for each benchmark (``[evaluate.lm_eval]``)."""

from typing import TYPE_CHECKING, Any

import attrs
import cattrs

from bitnet_cli.manifest.files import Table
from bitnet_cli.manifest.schema import Evaluation
from bitnet_cli.manifest.structure import structure
from bitnet_cli.manifest.suggest import did_you_mean
from bitnet_cli.manifest.values import got, key
from bitnet_core.config.evaluate import EvaluateConfig

if TYPE_CHECKING:
    from bitnet_cli.plugins import Plugins


def evaluate_section(
    table: Table, plugins: "Plugins", converter: cattrs.Converter, problems: list[str]
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
            problems.append(f"[evaluate.{key(name)}]: {plugins.unknown('benchmark', name)}")
        elif not isinstance(value, dict):
            problems.append(f"evaluate.{name}: expected a table, got {got(value)}  → write [evaluate.{name}]")
        else:
            options[name] = structure(value, plugins.benchmarks[name].options, converter, f"evaluate.{name}", problems)
    if settings is None:
        return None
    for name in settings.benchmarks:
        if name not in plugins.benchmarks:
            problems.append(f"evaluate.benchmarks: {plugins.unknown('benchmark', name)}")
        elif name not in options:
            options[name] = structure({}, plugins.benchmarks[name].options, converter, f"evaluate.{name}", problems)
    _check_quality(settings, plugins, problems)
    found = {name: options.get(name) for name in settings.benchmarks}
    return Evaluation(settings, found) if len(problems) == before else None


def _is_table(name: str, value: object, plugins: "Plugins") -> bool:
    return name in plugins.benchmarks or isinstance(value, dict)


def _check_quality(settings: EvaluateConfig, plugins: "Plugins", problems: list[str]) -> None:
    """The score that the index takes, where the plugin says which it has."""
    name, _, score = settings.qei_quality.partition(".")
    known = plugins.benchmarks[name].scores if name in plugins.benchmarks else ()
    if known and score not in known:
        problems.append(f'evaluate.qei_quality: {name} has no score "{score}"; {did_you_mean(score, known)}')
