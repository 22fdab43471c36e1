"""`bitnet completion`, and what a shell offers after an option: stages, exporters, settings, manifests, run folders."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem, get_completion_class

from bitnet_cli.errors import UserError, user_errors

SHELLS = ("bash", "zsh", "fish")


@click.command("completion", short_help="Print the script that makes a shell complete this command.")
@click.argument("shell", metavar="[SHELL]", type=click.Choice(SHELLS), required=False)
@click.option("--install", is_flag=True, help="Write the script where the shell looks for it, instead of printing it.")
def completion_command(shell: str | None, install: bool) -> None:
    """Print the script that makes SHELL (bash, zsh or fish; default: $SHELL) complete this command.

    \b
    Examples:
      bitnet completion --install
      eval "$(bitnet completion bash)"          for this session only
      bitnet completion zsh > ~/.zfunc/_bitnet
    """
    with user_errors():
        chosen = shell or _own_shell()
        script = completion_script(chosen, click.get_current_context().find_root().command)
        if not install:
            click.echo(script)
            return
        path = _home_of(chosen)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(script + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"{path} can't be written: {error.strerror}",
                f"redirect `bitnet completion {chosen}` elsewhere",
            ) from error
    click.echo(f"{path}: new shells complete `bitnet`")
    if chosen == "zsh":
        click.echo("if they don't, put this into ~/.zshrc: fpath+=~/.zfunc; autoload -Uz compinit; compinit")


def completion_script(shell: str, cli: click.Command) -> str:
    """The script of `shell`, which calls ``bitnet`` (`cli`) for what may come next."""
    kind = get_completion_class(shell)
    if kind is None:
        raise UserError(f"there is no completion for {shell}", f"name one of: {', '.join(SHELLS)}")
    try:
        return kind(cli, {}, "bitnet", "_BITNET_COMPLETE").source()
    except RuntimeError as error:  # bash before 4.4
        raise UserError(f"{error}", f"install a newer {shell}, or name one of: {', '.join(SHELLS)}") from error


def _own_shell() -> str:
    name = Path(os.environ.get("SHELL", "")).name
    if name not in SHELLS:
        raise UserError("which shell this is can't be told from $SHELL", "name it: bitnet completion bash")
    return name


def _home_of(shell: str) -> Path:
    """The file that `shell` reads by itself when the command is first completed."""
    if shell == "zsh":
        return Path.home() / ".zfunc" / "_bitnet"
    if shell == "fish":
        return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "fish/completions/bitnet.fish"
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share")
    return data / "bash-completion/completions/bitnet"


Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def stage(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """One stage."""
    from bitnet_cli.manifest import STAGES

    return _beginning(STAGES, typed)


def several(names: Callable[[], Iterable[str]]) -> Completer:
    """Names with commas between them, each once: ``train,ev`` gives ``train,evaluate``."""

    def complete(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
        before, comma, last = typed.rpartition(",")
        taken = before.split(",")
        return [
            CompletionItem(f"{before}{comma}{name}") for name in names() if name.startswith(last) and name not in taken
        ]

    return complete


def stages() -> Iterable[str]:
    from bitnet_cli.manifest import STAGES

    return STAGES


def exporters() -> Iterable[str]:
    """Those that are installed."""
    from bitnet_cli.plugins.load import load_plugins

    return load_plugins().exporters


def setting(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """``KEY=`` with what the key is; after ``KEY=`` the values of one that takes only some."""
    from bitnet_cli.manifest.json_schema import manifest_schema
    from bitnet_cli.plugins.load import load_plugins

    found: dict[str, Mapping[str, Any]] = {}
    for key, schema in _keys(manifest_schema(load_plugins())):
        found.setdefault(key, schema)
    key, equals, value = typed.partition("=")
    if equals:
        choices = found.get(key, {}).get("enum", ())
        return [CompletionItem(f"{key}={each}") for each in choices if str(each).startswith(value)]
    return [
        CompletionItem(f"{each}=", help=str(schema.get("description", "")))
        for each, schema in sorted(found.items())
        if each.startswith(key)
    ]


def manifest(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """TOML files, here and in ``manifests/``, and of the folder that is being typed."""
    folder = Path(typed) if typed.endswith("/") else Path(typed).parent
    places = [folder, *([Path("manifests")] if not typed else [])]
    files = sorted(
        {path.as_posix() for place in places if place.is_dir() for path in place.glob("*.toml")} - {"pyproject.toml"}
    )
    folders = sorted(f"{path.as_posix()}/" for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    plain = typed.removeprefix("./")
    lead = typed[: len(typed) - len(plain)]
    visible = [name for name in (*files, *folders) if not Path(name).name.startswith(".")]
    return [CompletionItem(lead + name) for name in visible if name.startswith(plain)]


def run_folder(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Run folders below ``runs/``, or below the folder that is being typed; else whatever the shell finds."""
    from bitnet_cli.run_folder import is_run_folder

    folder = Path("runs") if "/" not in typed else Path(typed.rpartition("/")[0] or "/")
    found = sorted(path.as_posix() for path in folder.iterdir() if is_run_folder(path)) if folder.is_dir() else []
    runs = _beginning(found, typed)
    return runs or [CompletionItem(typed, type="file")]


def _beginning(names: Iterable[str], typed: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if name.startswith(typed)]


def _keys(schema: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(dotted key, its schema) of every value; of a table that a ``kind`` chooses, the keys of all kinds."""
    for each in schema.get("anyOf", ()):
        yield from _keys(each, place)
    for name, inner in schema.get("properties", {}).items():
        key = f"{place}{name}"
        if "properties" in inner or any("properties" in each for each in inner.get("anyOf", ())):
            yield from _keys(inner, f"{key}.")
        elif place:
            yield key, inner
