"""`bitnet init` and `bitnet manifests`: a start without a clone."""

import json
from pathlib import Path

import click

from bitnet_cli.errors import user_errors

FORCE = click.option("--force", is_flag=True, help="Replace files that are there with another content.")


@click.command("init")
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
    """


@manifests.command("ls")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_manifests(as_json: bool) -> None:
    """List them, each with what it is for."""
    from bitnet_cli import shipped

    found = {name: shipped.summary(name) for name in shipped.names()}
    if as_json:
        click.echo(json.dumps({"manifests": [{"name": n, "summary": s} for n, s in found.items()]}, indent=2))
        return
    width = max(map(len, found))
    for name, summary in found.items():
        click.echo(f"{name:<{width}}  {summary}")


@manifests.command("cp")
@click.argument("name")
@click.argument("folder", metavar="[DIR]", default="manifests", type=click.Path(path_type=Path))
@FORCE
def copy_manifest(name: str, folder: Path, force: bool) -> None:
    """Copy the manifest NAME into DIR (default: manifests), with those that it extends and their data."""
    with user_errors():
        from bitnet_cli import shipped

        files = shipped.with_needs(name.removesuffix(".toml"))
        _say(shipped.write(files, folder, replace=force), len(files), folder)


def _say(written: list[str], all_files: int, folder: Path) -> None:
    for path in written:
        click.echo(str(folder / path))
    if len(written) < all_files:
        click.echo(f"{all_files - len(written)} of {all_files} files were there already, as they are")
