"""`bitnet completion`: what makes a shell complete commands, options and paths. Click writes the scripts."""

import os
from pathlib import Path

import click
from click.shell_completion import get_completion_class

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
