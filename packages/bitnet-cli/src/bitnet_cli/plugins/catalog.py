"""What is installed: the rows that `bitnet plugins` shows and the records that the pipeline opens."""

from collections.abc import Mapping
from typing import Any, Final, Literal, TypeVar

import attrs

import bitnet_cli.hookspecs
import bitnet_core.hookspecs
import bitnet_providers.hookspecs
import bitnet_storage.hookspecs
from bitnet_cli.contract import LauncherPlugin
from bitnet_cli.errors import Problem, UserError
from bitnet_cli.wording.did_you_mean import nearest
from bitnet_cli.wording.hide_secrets import looks_like_key
from bitnet_cli.wording.toml_values import shown
from bitnet_core.hookspecs import BenchmarkPlugin, ExporterPlugin, LossPlugin
from bitnet_providers.contract import TeacherPlugin
from bitnet_storage.contract import StorePlugin

Status = Literal["ok", "disabled", "incompatible", "import failed", "missing extra", "duplicate"]


Record = TeacherPlugin | StorePlugin | LossPlugin | ExporterPlugin | BenchmarkPlugin | LauncherPlugin


R = TypeVar("R", TeacherPlugin, StorePlugin, LossPlugin, ExporterPlugin, BenchmarkPlugin, LauncherPlugin)


@attrs.frozen
class Kind:
    """A kind of plugin: the hook that brings it, the record that the hook returns, and who owns both."""

    name: str
    hook: str
    record: type
    api_version: int
    owner: str


KINDS: Final = (
    Kind("teacher", "bitnet_teachers", TeacherPlugin, bitnet_providers.hookspecs.API_VERSION, "bitnet-providers"),
    Kind("store", "bitnet_stores", StorePlugin, bitnet_storage.hookspecs.API_VERSION, "bitnet-storage"),
    Kind("loss", "bitnet_losses", LossPlugin, bitnet_core.hookspecs.API_VERSION, "bitnet-core"),
    Kind("exporter", "bitnet_exporters", ExporterPlugin, bitnet_core.hookspecs.API_VERSION, "bitnet-core"),
    Kind("benchmark", "bitnet_benchmarks", BenchmarkPlugin, bitnet_core.hookspecs.API_VERSION, "bitnet-core"),
    Kind("launcher", "bitnet_launchers", LauncherPlugin, bitnet_cli.hookspecs.API_VERSION, "bitnet-cli"),
)


@attrs.frozen(kw_only=True)
class Row:
    """One line of `bitnet plugins`."""

    name: str
    """The manifest's ``kind``; the entry point's name where the package could not be loaded."""
    kind: str
    """teacher, store, loss, exporter, benchmark or launcher; empty where the package could not be loaded."""
    distribution: str
    version: str
    status: Status
    problem: str = ""
    fix: str = ""
    capabilities: Mapping[str, Any] = attrs.field(factory=dict)
    by_settings: bool = False
    """The capabilities are those of a usual teacher; its settings decide (a base URL, a model)."""
    summary: str = ""


@attrs.frozen
class Plugins:
    """The mappings hold every record that a manifest may name, also those whose extra is missing."""

    teachers: Mapping[str, TeacherPlugin]
    stores: Mapping[str, StorePlugin]
    losses: Mapping[str, LossPlugin]
    all: tuple[Row, ...]
    exporters: Mapping[str, ExporterPlugin] = attrs.field(factory=dict)
    benchmarks: Mapping[str, BenchmarkPlugin] = attrs.field(factory=dict)
    launchers: Mapping[str, LauncherPlugin] = attrs.field(factory=dict)
    warnings: tuple[str, ...] = ()
    """What the user should know beside the rows: a name to disable that nothing goes by."""

    def require_teacher(self, name: str) -> TeacherPlugin:
        """The teacher's record, ready to be opened. Raises UserError where it isn't there or lacks its extra."""
        return self._require("teacher", name, self.teachers)

    def require_store(self, name: str) -> StorePlugin:
        """The store's record, ready to be opened. Raises UserError where it isn't there or lacks its extra."""
        return self._require("store", name, self.stores)

    def require_loss(self, name: str) -> LossPlugin:
        """The loss's record, ready to be loaded. Raises UserError where it isn't there or lacks its extra."""
        return self._require("loss", name, self.losses)

    def require_exporter(self, name: str) -> ExporterPlugin:
        """The exporter's record, ready to be loaded. Raises UserError where it isn't there or lacks its extra."""
        return self._require("exporter", name, self.exporters)

    def require_benchmark(self, name: str) -> BenchmarkPlugin:
        """The benchmark's record, ready to be loaded. Raises UserError where it isn't there or lacks its extra."""
        return self._require("benchmark", name, self.benchmarks)

    def require_launcher(self, name: str) -> LauncherPlugin:
        """The launcher's record, ready to be opened. Raises UserError where it isn't there or lacks its extra."""
        return self._require("launcher", name, self.launchers)

    def records(self, kind: str) -> Mapping[str, Record]:
        """The records of one kind: teacher, store, loss, exporter, benchmark or launcher."""
        match kind:
            case "teacher":
                return self.teachers
            case "store":
                return self.stores
            case "exporter":
                return self.exporters
            case "benchmark":
                return self.benchmarks
            case "launcher":
                return self.launchers
        return self.losses

    def unknown(self, kind: str, name: str) -> Problem:
        """Why no `kind` plugin of that name can be used, what there is, and the fix."""
        for row in self.all:
            if row.name == name and row.kind in (kind, "") and row.status != "ok":
                return _unusable(row, kind)
        installed = sorted(self.records(kind))
        match = nearest(name, installed)
        guess = f"did you mean '{match}'? " if match else ""
        called = "of that name" if looks_like_key(name) else f"'{shown(name)}'"
        return Problem(
            f"there is no {kind} plugin {called}; {guess}installed: {', '.join(installed) or 'none'}",
            "install the package that brings it with pip install; `bitnet plugins` shows what is there",
        )

    def _require(self, kind: str, name: str, records: Mapping[str, R]) -> R:
        if name not in records:
            unknown = self.unknown(kind, name)
            raise UserError(unknown.why, unknown.fix)
        for row in self.all:
            if row.kind == kind and row.name == name and row.status == "missing extra":
                unusable = _unusable(row, kind)
                raise UserError(unusable.why, unusable.fix)
        return records[name]


def _unusable(row: Row, kind: str) -> Problem:
    return Problem(f"the {kind} plugin '{row.name}' can't be used: {row.status}: {row.problem}", row.fix)


OWN_DISTRIBUTIONS: Final = ("bitnet-core", "bitnet-providers", "bitnet-storage", "bitnet-cli")
