"""`bitnet init` and `bitnet manifests`: a start without a clone, from the manifests that come with the package.

They are ``starter/``. In the repository those files are links to ``manifests/``; a wheel holds their contents.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import tomli

from bitnet_cli import run_folder
from bitnet_cli.errors import UserError, user_errors
from bitnet_cli.wording.did_you_mean import did_you_mean
from bitnet_cli.wording.hide_secrets import plain_json

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
        files = everything()
        _say(write(files, folder, replace=force), len(files), folder)
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

    found = {name: summary(name) for name in names()}
    if as_json:
        click.echo(json.dumps({"manifests": [{"name": n, "summary": s} for n, s in found.items()]}, indent=2))
        return
    width = max(map(len, found))
    for name, about in found.items():
        click.echo(f"{name:<{width}}  {about}")


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
        files = with_needs(name.removesuffix(".toml"))
        _say(write(files, folder, replace=force), len(files), folder)


BUILT_IN = click.option("--built-in", is_flag=True, help="Leave out what other packages' plugins bring.")


@manifests.command("schema", short_help="Print the JSON schema of a manifest, for editors.")
@BUILT_IN
def print_schema(built_in: bool) -> None:
    """Print the JSON schema of a manifest, for editors (docs/editors.md).

    \b
    Example:
      bitnet manifests schema > manifests/manifest.schema.json
    """
    click.echo(plain_json(_schema(built_in), indent=2))


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
        from bitnet_cli.plugins.load import load_plugins

        return manifest_schema(load_plugins(load_environment()), own_only=built_in)


def _say(written: list[str], all_files: int, folder: Path) -> None:
    for path in written:
        click.echo(str(folder / path))
    if len(written) < all_files:
        click.echo(f"{all_files - len(written)} of {all_files} files were there already, as they are")


STARTER = Path(__file__).parents[1] / "starter"


MANIFESTS = STARTER / "manifests"


def names() -> list[str]:
    """The names of the shipped manifests, without ``.toml``."""
    return sorted(path.stem for path in MANIFESTS.glob("*.toml"))


def summary(name: str) -> str:
    """What a manifest says of itself in the first line."""
    first = (MANIFESTS / f"{name}.toml").read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip()


def everything() -> dict[str, bytes]:
    """Path within ``starter/`` → content."""
    files = (path for path in STARTER.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(STARTER).as_posix(): path.read_bytes() for path in sorted(files)}


def with_needs(name: str) -> dict[str, bytes]:
    """The manifest `name`, those that it extends, the data files that they name, their schema: path → content.

    Raises UserError where there is no such manifest.
    """
    if name not in names():
        raise UserError(f'there is no manifest "{name}"', did_you_mean(name, names()))
    found: dict[str, bytes] = {}
    waiting = [f"{name}.toml"]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found[path] = (MANIFESTS / path).read_bytes()
        if path.endswith(".toml"):
            text = found[path].decode()
            needs = [*_texts(tomli.loads(text)), *re.findall(r"^#:schema (\S+)$", text, re.MULTILINE)]
            waiting += [need for need in needs if (MANIFESTS / need).is_file()]
    return found


def write(files: Mapping[str, bytes], folder: Path, *, replace: bool) -> list[str]:
    """Write `files` below `folder`; returns the paths written. Files that are there with the same content are left.

    Raises UserError, before anything is written, where one is there with another content and `replace` is False.
    """
    news = [path for path, content in files.items() if _content(folder / path) != content]
    changed = [str(folder / path) for path in news if (folder / path).exists()]
    if changed and not replace:
        raise UserError(
            "\n".join(f"{path} is there already, with another content" for path in changed) + "; nothing was written",
            "name another folder, or replace with --force",
        )
    try:
        for path in news:
            run_folder.write_bytes(folder / path, files[path])
    except OSError as error:
        raise UserError(f"{folder} can't be written: {error.strerror}", "name another folder") from error
    return news


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _texts(value: Any) -> Iterator[str]:
    """Every string in a TOML value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        items: Iterable[Any] = value.values() if isinstance(value, dict) else value
        for item in items:
            yield from _texts(item)
