"""From a file to a `Manifest`: read, follow `extends`, lay `--set` over, structure strictly, check as a whole."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import cattrs

from bitnet_cli.environment import export, load_environment
from bitnet_cli.errors import Problem, ProblemsError
from bitnet_cli.manifest.check_values import strict_converter, structure
from bitnet_cli.manifest.manifest import (
    EVALUATE_SECTION,
    EXPORT_SECTION,
    MANIFEST_VERSION,
    PLAIN_SECTIONS,
    SECTIONS,
    TAGGED_SECTIONS,
    Evaluation,
    Exports,
    Manifest,
    Tagged,
)
from bitnet_cli.manifest.messages import hint
from bitnet_cli.manifest.overrides import apply_overrides
from bitnet_cli.manifest.stage_needs import default_stages, stages_of
from bitnet_cli.manifest.toml_files import Table, read_manifest
from bitnet_cli.plugins.catalog import Plugins
from bitnet_cli.plugins.load import load_plugins
from bitnet_cli.wording.did_you_mean import did_you_mean
from bitnet_cli.wording.hide_secrets import has_password
from bitnet_cli.wording.toml_values import got, key
from bitnet_core.config.calibration import CalibrationConfig
from bitnet_core.config.evaluate import EvaluateConfig


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


def load_manifest(path: Path, overrides: Sequence[str], plugins: Plugins, env: Mapping[str, str]) -> Manifest:
    """Read and check a manifest.

    `overrides` are the texts of ``--set``; `env` fills ``${VAR}`` in paths. Raises UserError with every problem.
    """
    path = Path(path)
    problems: list[Problem] = []
    table = apply_overrides(read_manifest(path, env), overrides, problems)
    problems += _passwords(table)
    manifest = _manifest(table, path, plugins, env, problems)
    if problems or manifest is None:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ProblemsError(problems, headline=f"{path}: {count}")
    return manifest


def _manifest(
    table: Table, path: Path, plugins: Plugins, env: Mapping[str, str], problems: list[Problem]
) -> Manifest | None:
    _check_version(table, problems)
    known = (*SECTIONS, "manifest_version", "extends")
    problems += [_unknown_section(name, value) for name, value in table.items() if name not in known]
    converter = strict_converter(env)
    sections: dict[str, Any] = {}
    for name in SECTIONS:
        if name in table and isinstance(table[name], dict):
            if name == EXPORT_SECTION:
                sections[name] = exports_section(table[name], plugins, converter, problems)
            elif name == EVALUATE_SECTION:
                sections[name] = evaluate_section(table[name], plugins, converter, problems)
            elif name in TAGGED_SECTIONS:
                sections[name] = _tagged(name, table[name], plugins, converter, problems)
            else:
                sections[name] = structure(table[name], PLAIN_SECTIONS[name], converter, name, problems)
        elif name in table:
            fix = f"write [{name}] on a line of its own"
            problems.append(Problem(f"{name}: expected a table, got {got(table[name])}", fix))
    _check_missing(sections, table, problems)
    _check_inner_layers(sections, table, plugins, problems)
    if problems:
        return None
    if "student" in sections:
        sections.setdefault("calibration", CalibrationConfig())
    if "stages" not in table["run"]:  # who describes exports, or a dry run, wants them
        sections["run"] = attrs.evolve(sections["run"], stages=default_stages(frozenset(sections)))
    return Manifest(**sections, source=Path(os.path.abspath(path)))


def _passwords(value: object, where: str = "") -> Iterator[Problem]:
    """Of URLs anywhere in the table: what is resolved is written into the run folder."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _passwords(inner, f"{where}.{key(name)}" if where else key(name))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _passwords(inner, f"{where}[{number}]")
    elif isinstance(value, str) and has_password(value):
        yield Problem(
            f"{where}: a URL with a password or a key in it",
            "leave it out of the URL, and name the variable that holds it (the options that end in _env)",
        )


def _check_version(table: Table, problems: list[Problem]) -> None:
    """What is left to check after reading: no file gave a version, or --set gave another one."""
    version = table.get("manifest_version")
    if version is None:
        problems.append(
            Problem("manifest_version: missing", f"write manifest_version = {MANIFEST_VERSION} at the top of the file")
        )
    elif isinstance(version, bool) or version != MANIFEST_VERSION:
        fix = f"write manifest_version = {MANIFEST_VERSION}"
        problems.append(Problem(f"manifest_version: expected {MANIFEST_VERSION}, got {got(version)}", fix))


def _unknown_section(name: str, value: object) -> Problem:
    if isinstance(value, dict):
        return Problem(f"[{key(name)}]: unknown section", did_you_mean(name, SECTIONS))
    homes = [section for section, cls in PLAIN_SECTIONS.items() if name in attrs.fields_dict(cls)]
    if homes:
        return Problem(f"{key(name)}: stands outside any section", f"move it under [{homes[0]}]")
    return Problem(f"{key(name)}: unknown key", hint(name, ("manifest_version", "extends", "unset", *SECTIONS)))


def _tagged(
    section: str, table: Table, plugins: Plugins, converter: cattrs.Converter, problems: list[Problem]
) -> Tagged | None:
    """A section whose type is the options class of the plugin that `kind` names."""
    records = plugins.records(TAGGED_SECTIONS[section])
    kind = table.get("kind")
    if not isinstance(kind, str):
        names = ", ".join(sorted(records)) or "none"
        wrong = "missing" if kind is None else f"expected a string, got {got(kind)}"
        problems.append(Problem(f"{section}.kind: {wrong}", f'write kind = "..." with one of: {names}'))
        return None
    if kind not in records:
        problems.append(plugins.unknown(TAGGED_SECTIONS[section], str(kind)).within(f"{section}.kind"))
        return None
    options = {name: value for name, value in table.items() if name != "kind"}
    before = len(problems)
    structured: Any = structure(options, records[kind].options, converter, section, problems)
    return Tagged(str(kind), structured) if len(problems) == before else None


def _check_missing(sections: Mapping[str, Any], table: Table, problems: list[Problem]) -> None:
    for section, why in (("run", "it names the run"), ("store", "it says where runs live")):
        if section not in table:
            problems.append(Problem(f"[{section}]: missing: {why}", f"add a [{section}] section"))
    run = sections.get("run")
    if run is None:
        return
    wanted_by: dict[str, str] = {}
    stages = stages_of(run.stages)
    for stage in stages:
        for section in stage.needs:
            wanted_by.setdefault(section, stage.name)
    borrowed = [
        f"{section}.{name}"
        for stage in stages
        for section, name in stage.borrows
        if str(getattr(sections.get(section), name, "")) == "teacher"
    ]
    if borrowed and "teacher" not in table and "teacher" not in wanted_by:
        problems.append(
            Problem(
                f'[teacher]: missing: {borrowed[0]} = "teacher" is its folder',
                f"add a [teacher] section, or set {borrowed[0]} to a folder",
            )
        )
    for section, wanted in wanted_by.items():
        if section not in table:
            problems.append(
                Problem(
                    f'[{section}]: missing: the stage "{wanted}" needs it',
                    f'add a [{section}] section, or leave "{wanted}" out of run.stages',
                )
            )


def _check_inner_layers(sections: Mapping[str, Any], table: Table, plugins: Plugins, problems: list[Problem]) -> None:
    """Terms on the teacher's inner layers need a teacher that has some here: checked before any teacher is paid."""
    loss, teacher = sections.get("loss"), sections.get("teacher")
    if loss is None or getattr(loss.options, "intermediate", None) is None:
        return
    if "teacher" not in table:
        lacks = "there is no [teacher]"
    elif teacher is not None and plugins.teachers[teacher.kind].model_folder is None:
        lacks = f'teacher "{teacher.kind}" has none on this machine'
    else:
        return
    problems.append(
        Problem(
            f"loss.intermediate: its terms need the teacher's inner layers, and {lacks}",
            'set teacher.kind = "local", or take [loss.intermediate] out',
        )
    )


def evaluate_section(
    table: Table, plugins: Plugins, converter: cattrs.Converter, problems: list[Problem]
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


def _is_table(name: str, value: object, plugins: Plugins) -> bool:
    return name in plugins.benchmarks or isinstance(value, dict)


def _check_quality(settings: EvaluateConfig, plugins: Plugins, problems: list[Problem]) -> None:
    """The score that the index takes, where the plugin says which it has."""
    name, _, score = settings.qei_quality.partition(".")
    known = plugins.benchmarks[name].scores if name in plugins.benchmarks else ()
    if known and score not in known:
        problems.append(Problem(f'evaluate.qei_quality: {name} has no score "{score}"', did_you_mean(score, known)))


def exports_section(
    table: Table, plugins: Plugins, converter: cattrs.Converter, problems: list[Problem]
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


def _kinds(value: Any, plugins: Plugins, problems: list[Problem]) -> tuple[str, ...]:
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
