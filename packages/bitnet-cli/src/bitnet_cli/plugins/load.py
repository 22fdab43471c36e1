"""The loader of the entry-point group ``bitnet``: each plugin by itself, none able to take the others down.

Built-ins come in through the same entry points as anybody's. Loading imports a plugin's module and calls its hooks,
which return light records; SDKs and torch are imported only when a teacher, store, loss, exporter or benchmark is
opened.
"""

import importlib.util
import os
import re
import traceback
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import PurePath
from types import MappingProxyType
from typing import Any, Final

import attrs
import pluggy

import bitnet_cli.hookspecs
import bitnet_core.hookspecs
import bitnet_providers.hookspecs
import bitnet_storage.hookspecs
from bitnet_cli.contract import ClusterConfig
from bitnet_cli.errors import UserError
from bitnet_cli.plugins.catalog import KINDS, OWN_DISTRIBUTIONS, Kind, Plugins, Row
from bitnet_core.config.evaluate import EvaluateConfig
from bitnet_providers.contract import Capabilities, TeacherPlugin

__all__ = ["Plugins", "Row", "load_plugins"]


GROUP: Final = "bitnet"


DISABLE_VARIABLE: Final = "BITNET_DISABLE_PLUGINS"


SETTINGS_OF_EVALUATE: Final = frozenset(attrs.fields_dict(EvaluateConfig))


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


_BROKEN = (Exception, SystemExit)  # a plugin that calls sys.exit() at import must not end the tool


class RejectedError(UserError):
    """A plugin or record that can't be used."""


@attrs.frozen
class Source:
    """An entry point and the distribution that brings it."""

    entry_point: metadata.EntryPoint
    distribution: str
    version: str


class Disabled:
    """The names in BITNET_DISABLE_PLUGINS, and which of them were met."""

    def __init__(self, text: str) -> None:
        self.names = {name.strip() for name in text.split(",") if name.strip()}
        self.met: set[str] = set()

    def has(self, *names: str) -> bool:
        met = self.names.intersection(names)
        self.met |= met
        return bool(met)


def load_plugins(env: Mapping[str, str] | None = None) -> Plugins:
    """Load every installed plugin; a broken one becomes a row that says what is wrong and how to fix it.

    ``BITNET_DISABLE_PLUGINS=name,name`` in `env` (default: the process's environment) names plugins, entry points or
    distributions to leave out; a package is not imported when its distribution or entry point is named. Of two plugins
    with one name the first counts: bitnet's own, then by distribution. Raises nothing.
    """
    environment = os.environ if env is None else env
    disabled = Disabled(environment.get(DISABLE_VARIABLE, ""))
    rows: list[Row] = []
    taken: dict[tuple[str, str], tuple[Any, str]] = {}  # (kind, name) -> record, distribution
    for source in _sources():
        if disabled.has(source.distribution, source.entry_point.name):
            rows.append(_row(source, "disabled", f"named in {DISABLE_VARIABLE}", f"take it out of {DISABLE_VARIABLE}"))
            continue
        for kind, record in _load(source, rows):
            rows.append(_take(source, kind, record, taken, disabled))
    by_kind: dict[str, dict[str, Any]] = {kind.name: {} for kind in KINDS}
    for (kind_name, name), (record, _) in taken.items():
        by_kind[kind_name][name] = record
    return Plugins(
        teachers=MappingProxyType(by_kind["teacher"]),
        stores=MappingProxyType(by_kind["store"]),
        losses=MappingProxyType(by_kind["loss"]),
        exporters=MappingProxyType(by_kind["exporter"]),
        benchmarks=MappingProxyType(by_kind["benchmark"]),
        launchers=MappingProxyType(by_kind["launcher"]),
        all=tuple(rows),
        warnings=tuple(
            f"{DISABLE_VARIABLE} names '{name}', but no plugin, entry point or distribution goes by that name"
            for name in sorted(disabled.names - disabled.met)
        ),
    )


# Finding
def _sources() -> list[Source]:
    """The group's entry points: bitnet's own first, then by distribution and name, whatever the order on sys.path.

    Each distribution is read by itself: `importlib.metadata.entry_points` fails as a whole where one is malformed.
    """
    found: dict[str, list[Source]] = {}
    for distribution in metadata.distributions():
        try:
            text = distribution.read_text("entry_points.txt")
            if not text or f"[{GROUP}]" not in text:
                continue
            name, version = distribution.metadata["Name"] or "unknown", distribution.version or "unknown"
            points = [point for point in distribution.entry_points if point.group == GROUP]
        except _BROKEN:  # not a plugin that could be named; pip check is the tool for damaged installations
            continue
        # The first on sys.path is the one that Python imports; a second copy of its metadata is stale.
        found.setdefault(_normal(name), [Source(point, name, version) for point in points])
    sources = [source for group in found.values() for source in group]
    return sorted(sources, key=lambda source: (*_rank(source.distribution), source.entry_point.name))


def _rank(distribution: str) -> tuple[bool, str]:
    return _normal(distribution) not in OWN_DISTRIBUTIONS, _normal(distribution)


def _normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


# Loading one
def _load(source: Source, rows: list[Row]) -> Iterator[tuple[Kind, Any]]:
    """The records that one entry point brings; what fails is appended to `rows`."""
    turn_off = f"{DISABLE_VARIABLE}={source.entry_point.name} leaves it out meanwhile"
    try:
        plugin = source.entry_point.load()
    except _BROKEN as error:
        again = f"pip install --force-reinstall {source.distribution}"
        if isinstance(error, ModuleNotFoundError) and error.name and "." not in error.name:
            again = f"install {error.name}, which it imports, or repair it with {again}"
        rows.append(_row(source, "import failed", _error_line(error, source), f"{again}; {turn_off}"))
        return
    manager = pluggy.PluginManager("bitnet")  # one each: pluggy keeps a refused plugin registered
    for hooks in (
        bitnet_providers.hookspecs,
        bitnet_storage.hookspecs,
        bitnet_core.hookspecs,
        bitnet_cli.hookspecs,
    ):
        manager.add_hookspecs(hooks)
    report_to = f"tell the author of {source.distribution}; {turn_off}"
    try:
        manager.register(plugin, name=source.entry_point.name)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        rows.append(_row(source, "incompatible", _hook_problem(error), report_to))
        return
    except _BROKEN as error:
        rows.append(_row(source, "incompatible", f"can't be registered: {_error_line(error, source)}", report_to))
        return
    hooks_met = 0
    for kind in KINDS:
        caller = getattr(manager.hook, kind.hook)
        if not caller.get_hookimpls():
            continue
        hooks_met += 1
        try:
            answers = [list(answer) for answer in caller()]
        except _BROKEN as error:
            problem = f"{kind.hook} raised {_error_line(error, source)}"
            rows.append(_row(source, "incompatible", problem, report_to, kind.name))
            continue
        if not answers:
            problem = f"{kind.hook} returned None, not a list of {kind.record.__name__}"
            rows.append(_row(source, "incompatible", problem, report_to, kind.name))
        for record in (record for answer in answers for record in answer):
            yield kind, record
    if not hooks_met:
        names = ", ".join(kind.hook for kind in KINDS)
        problem = f"'{source.entry_point.value}' has no hook of bitnet ({names})"
        rows.append(_row(source, "incompatible", problem, f"mark its function with @hookimpl, or {report_to}"))


def _take(
    source: Source, kind: Kind, record: Any, taken: dict[tuple[str, str], tuple[Any, str]], disabled: Disabled
) -> Row:
    """The row of one record; a usable one goes into `taken`."""
    off = f"{DISABLE_VARIABLE}={source.entry_point.name} leaves it out meanwhile"
    try:
        _check_record(kind, record, source)
    except RejectedError as rejected:
        name = getattr(record, "name", None)
        shown = name if isinstance(name, str) and _NAME.fullmatch(name) else source.entry_point.name
        return _row(source, "incompatible", rejected.why, f"{rejected.fix}; {off}", kind.name, shown)
    row = attrs.evolve(
        _row(source, "ok", kind=kind.name, name=record.name),
        summary=str(record.summary),
        capabilities=attrs.asdict(record.capabilities) if isinstance(record, TeacherPlugin) else {},
        by_settings=isinstance(record, TeacherPlugin) and record.capabilities_of is not None,
    )
    if disabled.has(record.name, f"{kind.name}:{record.name}"):
        return attrs.evolve(
            row, status="disabled", problem=f"named in {DISABLE_VARIABLE}", fix=f"take it out of {DISABLE_VARIABLE}"
        )
    if (kind.name, record.name) in taken:
        first = taken[kind.name, record.name][1]
        return attrs.evolve(
            row,
            status="duplicate",
            problem=f"{first} brings a {kind.name} of this name too, and that one counts",
            fix=f"uninstall one of the two, or leave {first}'s out with {DISABLE_VARIABLE}={first}",
        )
    taken[kind.name, record.name] = (record, source.distribution)
    missing = [module for module in record.requires if not _is_there(module)]
    if missing:
        return attrs.evolve(
            row,
            status="missing extra",
            problem=f"needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed",
            fix=record.install or f"pip install {' '.join(missing)}",
        )
    return row


def _check_record(kind: Kind, record: Any, source: Source) -> None:
    """Raises RejectedError where a record is not what its hook promises."""
    tell = f"tell the author of {source.distribution}"
    wanted = kind.record.__name__
    promised: bool = isinstance(record, kind.record)
    if not promised:
        raise RejectedError(f"{kind.hook} returned a {type(record).__name__}, not a {wanted}", tell)
    name, version, options = (getattr(record, field) for field in ("name", "api_version", "options"))
    if isinstance(version, bool) or not isinstance(version, int):
        raise RejectedError(f"{wanted}.api_version is a {type(version).__name__}, not an integer", tell)
    if version > kind.api_version:
        raise RejectedError(
            f"made for version {version} of {kind.owner}'s plugin API; the one installed has {kind.api_version}",
            f"pip install --upgrade {kind.owner}",
        )
    if version < 1:
        raise RejectedError(f"{wanted}.api_version is {version}; versions start at 1", tell)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RejectedError(f"{wanted}.name must be a short word of letters, digits, '_', '.', '-'", tell)
    if not isinstance(options, type) or not attrs.has(options):
        raise RejectedError(f"{wanted}.options of '{name}' must be an attrs class", tell)
    if any(field.name == "kind" for field in attrs.fields(options)):
        raise RejectedError(
            f"{options.__name__} has a field 'kind', which the manifest uses to choose the plugin", tell
        )
    if kind.name == "benchmark" and name in SETTINGS_OF_EVALUATE:
        raise RejectedError(f"'{name}' is a setting of [evaluate], where benchmarks have their tables", tell)
    opener = "load" if kind.name in ("loss", "exporter", "benchmark") else "open"
    if not callable(getattr(record, opener)):
        raise RejectedError(f"{wanted}.{opener} of '{name}' can't be called", tell)
    if not isinstance(record.requires, tuple | list) or not all(isinstance(module, str) for module in record.requires):
        raise RejectedError(f"{wanted}.requires of '{name}' must be a tuple of module names", tell)
    if kind.name == "launcher" and not issubclass(options, ClusterConfig):
        raise RejectedError(f"{wanted}.options of '{name}' must extend ClusterConfig", tell)
    if kind.name == "teacher" and not isinstance(record.capabilities, Capabilities):
        raise RejectedError(f"{wanted}.capabilities of '{name}' must be a Capabilities", tell)


def _is_there(module: str) -> bool:
    """Whether `module` could be imported, without importing it (a dotted one imports its parents)."""
    try:
        return importlib.util.find_spec(module) is not None
    except _BROKEN:
        return False


# Words
def _row(source: Source, status: Any, problem: str = "", fix: str = "", kind: str = "", name: str = "") -> Row:
    return Row(
        name=name or source.entry_point.name,
        kind=kind,
        distribution=source.distribution,
        version=source.version,
        status=status,
        problem=problem,
        fix=fix,
    )


def _error_line(error: BaseException, source: Source) -> str:
    """``ValueError: no model (plugin.py:12)``: one line, with the place in the plugin's own package.

    What it called may go on elsewhere, even `sys.exit`: wandb puts a function of its own in its place.
    """
    text = " ".join(str(error).split())[:200]
    package = source.entry_point.module.partition(".")[0]
    own = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__")).partition(".")[0] == package
    ]
    where = f" ({PurePath(own[-1][0]).name}:{own[-1][1]})" if own else ""
    return f"{type(error).__name__}: {text}{where}" if text else f"{type(error).__name__}{where}"


def _hook_problem(error: pluggy.PluginValidationError) -> str:
    """pluggy's words without its preamble (the plugin's repr holds a path)."""
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    if "unknown hook" in text:
        hook = re.search(r"unknown hook '([^']+)'", text)
        known = ", ".join(kind.hook for kind in KINDS)
        return f"unknown hook '{hook.group(1) if hook else '?'}'; bitnet has {known}"
    arguments = re.search(r"definition: (\w+)\((.*?)\) Argument\(s\) \{(.*?)\}", text)
    if arguments:
        name, _, extra = arguments.groups()
        names = ", ".join(sorted(re.findall(r"'(\w+)'", extra)))
        return f"wrong hook signature: {name} has no argument {names}"
    return text[:200]
