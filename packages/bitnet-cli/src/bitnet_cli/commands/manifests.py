"""`bitnet init` and `bitnet manifests`: a start without a clone."""

import json
from pathlib import Path
from typing import Any

import click

from bitnet_cli.errors import user_errors

FORCE = click.option("--force", is_flag=True, help="Replace files that are there and differ.")


@click.command("init", short_help="Write manifests to start from into a folder (default: here).")
@click.argument("folder", metavar="[DIR]", default=".", type=click.Path(path_type=Path))
@FORCE
def init_command(folder: Path, force: bool) -> None:
    """Write the manifests, their data and .env.example into DIR (default: here).

    \b
    Examples:
      bitnet init && bitnet run manifests/quickstart.toml
      bitnet init my-student
    """
    with user_errors():
        from bitnet_cli import shipped

        files = shipped.everything()
        _say(shipped.write(files, folder, replace=force), len(files), folder)
    start = Path("manifests/quickstart.toml") if folder == Path() else folder / "manifests/quickstart.toml"
    click.echo(f"next: bitnet run {start}")


@click.group("manifests")
def manifests() -> None:
    """List and copy the manifests that come with bitnet.

    \b
    Examples:
      bitnet manifests ls
      bitnet manifests cp colab                 manifests/colab.toml and what it needs
      bitnet manifests cp openai my-folder
      bitnet manifests schema > manifest.schema.json
      bitnet manifests reference                every section and key, as a page
    """


@manifests.command("ls")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_manifests(as_json: bool) -> None:
    """List the manifests, each with what it is for.

    \b
    Examples:
      bitnet manifests ls
      bitnet manifests ls --json
    """
    from bitnet_cli import shipped

    found = {name: shipped.summary(name) for name in shipped.names()}
    if as_json:
        click.echo(json.dumps({"manifests": [{"name": n, "summary": s} for n, s in found.items()]}, indent=2))
        return
    width = max(map(len, found))
    for name, summary in found.items():
        click.echo(f"{name:<{width}}  {summary}")


@manifests.command("cp", short_help="Copy a manifest into a folder, with what it needs.")
@click.argument("name")
@click.argument("folder", metavar="[DIR]", default="manifests", type=click.Path(path_type=Path))
@FORCE
def copy_manifest(name: str, folder: Path, force: bool) -> None:
    """Copy the manifest NAME into DIR (default: manifests), with those that it extends and their data.

    \b
    Examples:
      bitnet manifests cp colab
      bitnet manifests cp openai my-folder
    """
    with user_errors():
        from bitnet_cli import shipped

        files = shipped.with_needs(name.removesuffix(".toml"))
        _say(shipped.write(files, folder, replace=force), len(files), folder)


BUILT_IN = click.option("--built-in", is_flag=True, help="Leave out what other packages' plugins bring.")


@manifests.command("schema", short_help="Print the JSON schema of a manifest, for editors.")
@BUILT_IN
def print_schema(built_in: bool) -> None:
    """Print the JSON schema of a manifest, for editors (docs/editors.md).

    \b
    Example:
      bitnet manifests schema > manifests/manifest.schema.json
    """
    click.echo(json.dumps(_schema(built_in), indent=2, ensure_ascii=False))


@manifests.command("reference")
@BUILT_IN
def print_reference(built_in: bool) -> None:
    """Print every section and key of a manifest, as a Markdown page.

    \b
    Example:
      bitnet manifests reference --built-in > docs/manifest.md
    """
    from bitnet_cli.manifest.reference import reference

    click.echo(reference(_schema(built_in)), nl=False)


def _schema(built_in: bool) -> dict[str, Any]:
    with user_errors():
        from bitnet_cli.environment import load_environment
        from bitnet_cli.manifest.json_schema import manifest_schema
        from bitnet_cli.plugins import load_plugins

        return manifest_schema(load_plugins(load_environment()), own_only=built_in)


def _say(written: list[str], all_files: int, folder: Path) -> None:
    for path in written:
        click.echo(str(folder / path))
    if len(written) < all_files:
        click.echo(f"{all_files - len(written)} of {all_files} files were there already, as they are")
