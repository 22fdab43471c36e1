"""`bitnet doctor`: what is wrong with installation, machine or manifest, before a run finds out. Asks no teacher."""

import importlib.metadata
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs
import click

from bitnet_cli.commands import completion
from bitnet_cli.environment import env_file_option, load_environment
from bitnet_cli.errors import UserError, problem_of

if TYPE_CHECKING:
    from bitnet_cli.manifest import Manifest, Tagged
    from bitnet_cli.plugins.catalog import Plugins


PACKAGES = ("bitnet-cli", "bitnet-core", "bitnet-providers", "bitnet-storage")


LITTLE = 5e9
"""Bytes of free disk below which a run of any size is in danger."""


_SECRETS = ("key", "secret", "token", "account", "password", "options")


Status = Literal["ok", "note", "problem"]
"""note: worth knowing; problem: a run would fail."""


@attrs.frozen
class Finding:
    """One line of the diagnosis."""

    check: str
    status: Status
    said: str
    fix: str = ""


def installation(plugins: "Plugins") -> Iterator[Finding]:
    """Versions, device, plugins, and the disk of the working folder."""
    yield versions({name: _version(name) for name in PACKAGES})
    yield device()
    yield from plugin_findings(plugins)
    yield disk("disk", shutil.disk_usage(Path.cwd()).free, f"here ({Path.cwd()})")


def of_manifest(manifest: "Manifest", plugins: "Plugins", environment: Mapping[str, str]) -> Iterator[Finding]:
    """Keys (whether they are set), what `bitnet plan` finds wrong, and the store: reached, written, its free space."""
    yield from keys(manifest, environment)
    yield from planned(manifest, plugins, environment)
    yield from store(manifest, plugins)


def versions(found: Mapping[str, str | None]) -> Finding:
    """Whether the four packages are there, and of one version."""
    missing = [name for name, version in found.items() if version is None]
    told = ", ".join(f"{name} {version or 'missing'}" for name, version in found.items())
    said = f"Python {platform.python_version()}; {told}"
    if missing or len(set(found.values())) > 1:
        return Finding("versions", "problem", said, "pip install --upgrade bitnet-cli (it brings the others along)")
    return Finding("versions", "ok", said)


def device() -> Finding:
    """What torch would train on."""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a library of CUDA's that isn't there
        return Finding("device", "problem", f"torch can't be imported: {error}", "pip install --force-reinstall torch")
    said = f"torch {torch.__version__}"
    if torch.cuda.is_available():
        for_all = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        gpus = ", ".join(f"{gpu.name} ({gpu.total_memory / 2**30:.0f} GiB)" for gpu in for_all)
        slow = not torch.cuda.is_bf16_supported(including_emulation=False)
        return Finding("device", "ok", f"{said}, {gpus}{'; no bf16, so fp16' if slow else ''}")
    if torch.backends.mps.is_available():
        return Finding("device", "ok", f"{said}, Apple's GPU (mps)")
    fix = "" if torch.version.cuda is None or not Path("/dev/nvidia0").exists() else "update the NVIDIA driver"
    return Finding("device", "note", f"{said}, no GPU: {os.cpu_count()} processors", fix)


def plugin_findings(plugins: "Plugins") -> Iterator[Finding]:
    """Plugins that don't work; an extra that isn't installed is no fault."""
    broken = [row for row in plugins.all if row.status not in ("ok", "disabled", "missing extra")]
    working = sum(row.status == "ok" for row in plugins.all)
    lacking = ", ".join(sorted(row.name for row in plugins.all if row.status == "missing extra"))
    said = f"{working} work" + (f"; not installed: {lacking} (`bitnet plugins` says how)" if lacking else "")
    yield Finding("plugins", "ok" if working else "problem", said)
    for row in broken:
        yield Finding("plugins", "note", f"{row.name} ({row.distribution}): {row.status}: {row.problem}", row.fix)


def disk(check: str, free: int, where: str) -> Finding:
    """Whether there is room for a run."""
    said = f"{free / 1e9:.1f} GB free {where}"
    if free < LITTLE:
        return Finding(check, "note", said, "free some space: checkpoints and caches take gigabytes")
    return Finding(check, "ok", said)


def keys(manifest: "Manifest", environment: Mapping[str, str]) -> Iterator[Finding]:
    """Whether the variables that the manifest names for secrets are set; their values are never shown."""
    from bitnet_cli.environment import skip_external

    barred = skip_external(environment)  # a teacher that may not be asked needs no key
    sections: list[tuple[str, Tagged | None]] = [("store", manifest.store), ("teacher", manifest.teacher)]
    for section, tagged in sections:
        for setting, name in () if tagged is None else secret_names(tagged.options):
            if environment.get(name, "").strip():
                yield Finding("keys", "ok", f"{section}.{setting}: {name} is set")
            else:
                status: Status = "note" if barred and section == "teacher" else "problem"
                yield Finding("keys", status, f"{section}.{setting}: {name} is not set", _how_to_set(name))


def _how_to_set(name: str) -> str:
    from bitnet_storage.backends.mounted_folder import in_colab

    if in_colab():  # only the notebook's own process is told a secret, and this is most likely another one
        return f"in a cell: import os; from google.colab import userdata; os.environ['{name}'] = userdata.get('{name}')"
    return f"export {name}=..., or put it in .env"


def secret_names(options: Any) -> Iterator[tuple[str, str]]:
    """(setting, variable) of the settings that name a secret's variable, e.g. ``api_key_env``."""
    for field in attrs.fields(type(options)):
        value = getattr(options, field.name)
        if field.name.endswith("_env") and any(word in field.name for word in _SECRETS) and isinstance(value, str):
            yield field.name, value


def planned(manifest: "Manifest", plugins: "Plugins", environment: Mapping[str, str]) -> Iterator[Finding]:
    """What `bitnet plan` says would stop the run."""
    from bitnet_cli.environment import skip_external
    from bitnet_cli.pipeline.make_plan import make_plan
    from bitnet_cli.pipeline.run_or_skip import Request
    from bitnet_cli.stages import PIPELINE

    plan = make_plan(manifest, plugins, PIPELINE, Request(skip_external=skip_external(environment)))
    for problem in plan.problems:
        yield Finding("plan", "problem", problem.why, problem.fix)
    if not plan.problems:
        yield Finding("plan", "ok", f"{manifest.source.name}: {len(plan.decisions)} stages, nothing in their way")


def store(manifest: "Manifest", plugins: "Plugins") -> Iterator[Finding]:
    """Open the store, list its runs, and write: the run's lease where the place is elsewhere, else a small file."""
    from bitnet_cli.stages.storage import known_folder
    from bitnet_storage.backends.local import make_writable
    from bitnet_storage.contract import DurableStore, StorageError

    try:
        opened = plugins.require_store(manifest.store.kind).open(manifest.store.options)
        folder = known_folder(manifest)
        if folder is not None:
            there = next(place for place in folder.parents if place.exists())
            make_writable(there, "store.work" if isinstance(opened, DurableStore) else "store.root")
        said = f"{manifest.store.kind}: {'' if folder is None else folder.parent} can be written"
        if isinstance(opened, DurableStore):
            runs = opened.runs()
            with opened.lease(manifest.run.name):
                said = f"{manifest.store.kind}: {opened.location} is reached and can be written; runs: {len(runs)}"
        yield Finding("store", "ok", said)
        yield disk("disk", opened.free_bytes(), "for the working folders")
    except (StorageError, UserError) as error:
        yield Finding("store", "problem", problem_of(error).why, problem_of(error).fix)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def shown(finding: Finding, echo: Callable[[str], None]) -> None:
    """One line, and its fix below it."""
    mark = {"ok": "✓", "note": "!", "problem": "✗"}[finding.status]
    echo(f"{mark} {finding.check:<9} {finding.said}")
    if finding.fix:
        echo(f"  {'':<9} → {finding.fix}")


@click.command("doctor", short_help="Check whether a run can start here, and say what to fix.")
@click.argument("manifest", required=False, type=click.Path(path_type=Path), shell_complete=completion.manifest)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="As in bitnet run. May be repeated.")
@env_file_option
def doctor_command(manifest: Path | None, as_json: bool, overrides: tuple[str, ...], env_file: Path | None) -> None:
    """Check versions, device, plugins and disk; with MANIFEST its keys, its store and its plan too.

    Says what to do where something is wrong. No teacher is asked, and no key's value is ever shown. Exit code 0: a run
    can start; 2: it can't.

    \b
    Examples:
      bitnet doctor
      bitnet doctor manifests/colab.toml
      bitnet doctor manifests/colab.toml --set 'train.precision="auto"'
    """
    from bitnet_cli.environment import export
    from bitnet_cli.manifest import load_manifest
    from bitnet_cli.plugins.load import load_plugins

    findings: list[Finding] = []

    def add(finding: Finding) -> None:
        findings.append(finding)
        if not as_json:
            shown(finding, click.echo)

    try:
        environment = load_environment(env_file)
        plugins = load_plugins(environment)
        for finding in installation(plugins):
            add(finding)
        if manifest is not None:
            loaded = load_manifest(manifest, overrides, plugins, environment)
            export(environment)  # SDKs and the teachers' own checks read it
            for finding in of_manifest(loaded, plugins, environment):
                add(finding)
    except UserError as error:
        for problem in error.problems:
            add(Finding("manifest" if findings else "settings", "problem", problem.why, problem.fix))
    problems = sum(finding.status == "problem" for finding in findings)
    if as_json:
        click.echo(json.dumps({"findings": list(map(attrs.asdict, findings)), "problems": problems}, indent=2))
    else:
        counted = "1 problem" if problems == 1 else f"{problems} problems"
        click.echo(f"{counted}: see the lines marked ✗" if problems else "a run can start")
    sys.exit(2 if problems else 0)
