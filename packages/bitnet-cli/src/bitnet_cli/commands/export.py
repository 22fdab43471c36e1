"""`bitnet export`: write a checkpoint as files that others run, and check them."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from bitnet_cli.commands import completion
from bitnet_cli.environment import env_file_option, load_environment, skip_external
from bitnet_cli.errors import Problem, ProblemsError, UserError, library_errors

if TYPE_CHECKING:
    from bitnet_cli.stages.export import Source


@click.command("export", short_help="Write a student as files for transformers, llama.cpp, Ollama.")
@click.argument("checkpoint", metavar="CKPT", type=click.Path(path_type=Path), shell_complete=completion.run_folder)
@click.option(
    "--to",
    "kinds",
    metavar="A,B",
    shell_complete=completion.several(completion.exporters),
    help="Exporters, e.g. gguf,hf. Default: what the run's manifest says.",
)
@click.option(
    "--out", metavar="DIR", type=click.Path(path_type=Path), help="Where to write. Default: exports/ in the run folder."
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    shell_complete=completion.setting,
    help="Change one setting of [export], e.g. 'export.gguf.types=[\"f16\"]'. May be repeated.",
)
@click.option("--force", is_flag=True, help="Replace what is there, whatever made it.")
@click.option(
    "--check",
    is_flag=True,
    help="Measure whether the files compute what the checkpoint does. Without --to: write nothing.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@env_file_option
def export_command(
    checkpoint: Path,
    kinds: str | None,
    out: Path | None,
    overrides: tuple[str, ...],
    force: bool,
    check: bool,
    as_json: bool,
    env_file: Path | None,
) -> None:
    """Write CKPT, a run folder or a checkpoint, as files that transformers, llama.cpp and Ollama open.

    \b
    Examples:
      bitnet export runs/quickstart --to gguf,hf
      bitnet export runs/quickstart --to gguf --set 'export.gguf.types=["q2_0", "f16"]'
      bitnet export runs/quickstart/checkpoints/step_60 --to packed --out early
      bitnet export runs/quickstart --check          codes, layers and logits against the checkpoint
    """
    with library_errors():
        code = _run(checkpoint, kinds, out, overrides, force, check, as_json, env_file)
    sys.exit(code)


def _run(
    checkpoint: Path,
    kinds: str | None,
    out: Path | None,
    overrides: Sequence[str],
    force: bool,
    check: bool,
    as_json: bool,
    env_file: Path | None,
) -> int:
    from bitnet_cli.environment import export as export_environment
    from bitnet_cli.stages.export import find_source, require_folder

    require_folder(checkpoint)
    environment = load_environment(env_file)
    export_environment(environment)  # transformers and the Hub's client read it when they are imported
    exporters = None if check and kinds is None else _exporters(checkpoint, kinds, overrides, environment)
    source = find_source(checkpoint)
    place = _out(source, out)
    printed: dict[str, Any] = {}
    if exporters is not None:
        publish = not skip_external(environment)
        printed["exported"] = _write(source, exporters, place, force, publish, quiet=as_json)
    passed = True
    if check:
        printed["check"], passed = _check(source, place, quiet=as_json)
    if as_json:
        click.echo(json.dumps(printed, indent=2))
    return 0 if passed else 1


def _write(
    source: "Source", exporters: dict[str, Any], place: Path, force: bool, publish: bool, quiet: bool
) -> dict[str, Any]:
    from bitnet_cli.stages.export import export_facts
    from bitnet_core.export.folder import export

    facts = export_facts(source.run) if source.run is not None else None
    report = export(source.checkpoint, exporters, place, run=source.run, facts=facts, force=force, publish=publish)
    for target, entry in () if quiet else report["exports"].items():
        click.echo(f"{place / target}  {entry['bytes'] / 1e6:,.1f} MB")
        for name in ("padded", "published"):
            if name in entry:
                click.echo(f"  {name}: {entry[name]}")
        for note in entry.get("notes", ()):
            click.echo(f"  note: {note}")
    if not publish and any(each.publish is not None for each in exporters.values()):
        click.echo("SKIP_EXTERNAL=1: nothing was uploaded", err=True)
    return report


def _check(source: "Source", place: Path, quiet: bool) -> tuple[list[dict[str, Any]], bool]:
    from bitnet_core.export.check import check_exports

    figures = check_exports(source.checkpoint, place)
    for each in () if quiet else figures:
        click.echo(str(each))
    passed = all(each.passed for each in figures)
    return [attrs.asdict(each) | {"passed": each.passed} for each in figures], passed


def _exporters(
    checkpoint: Path, kinds: str | None, overrides: Sequence[str], environment: dict[str, str]
) -> dict[str, Any]:
    """The exporters asked for, with the options of the run's manifest and of --set. Raises UserError."""
    from bitnet_cli.manifest.check_values import strict_converter
    from bitnet_cli.manifest.load import exports_section
    from bitnet_cli.manifest.overrides import apply_overrides
    from bitnet_cli.plugins.load import load_plugins

    problems: list[Problem] = []
    strangers = [each for each in overrides if not each.lstrip().startswith("export.")]
    problems += [
        Problem(f"--set {each.partition('=')[0]}: only export.* can be set here", "leave it out") for each in strangers
    ]
    section = _manifest_section(checkpoint)
    if kinds is not None:
        section |= {"kinds": [kind.strip() for kind in kinds.split(",") if kind.strip()]}
    table = apply_overrides({"export": section}, [each for each in overrides if each not in strangers], problems)
    if "kinds" not in table["export"]:
        raise UserError("nothing says what to export", "add --to, e.g. --to gguf,hf")
    plugins = load_plugins(environment)
    found = exports_section(table["export"], plugins, strict_converter(environment), problems)
    if found is None or problems:
        raise ProblemsError(problems)
    return {kind: plugins.require_exporter(kind).load(options) for kind, options in found.options.items()}


def _manifest_section(checkpoint: Path) -> dict[str, Any]:
    """[export] of the run that the checkpoint lies in; empty where there is none."""
    import tomli

    for folder in (checkpoint, checkpoint.resolve().parent.parent):
        try:
            section = tomli.loads((folder / "manifest.resolved.toml").read_text(encoding="utf-8")).get("export")
        except (OSError, ValueError):
            continue
        return dict(section) if isinstance(section, dict) else {}
    return {}


def _out(source: "Source", out: Path | None) -> Path:
    if out is not None:
        return out
    if source.run is None:
        raise UserError(f"{source.checkpoint} lies in no run folder", "say where the exports go with --out DIR")
    return source.run / "exports"
