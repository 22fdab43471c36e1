"""The ``bitnet`` command. A subcommand imports what it needs when it runs, so that ``--help`` costs next to nothing."""

import gc
import io
import itertools
import os
import sys
from typing import Any, NoReturn

import click

from bitnet_cli.commands.chat import chat_command
from bitnet_cli.commands.checkpoint import checkpoint_command
from bitnet_cli.commands.compare import compare_command
from bitnet_cli.commands.completion import completion_command
from bitnet_cli.commands.distil import distil_command
from bitnet_cli.commands.doctor import doctor_command
from bitnet_cli.commands.dry_run import dry_run_command
from bitnet_cli.commands.export import export_command
from bitnet_cli.commands.generate import generate_command
from bitnet_cli.commands.manifests import init_command, manifests
from bitnet_cli.commands.plan import plan_command
from bitnet_cli.commands.plugins import plugins_command
from bitnet_cli.commands.probe import probe_command
from bitnet_cli.commands.push import push_command
from bitnet_cli.commands.report import report_command
from bitnet_cli.commands.run import run_command
from bitnet_cli.commands.runs import runs
from bitnet_cli.commands.sanity import sanity_command
from bitnet_cli.commands.serve import serve_command
from bitnet_cli.commands.sweep import sweep_command
from bitnet_cli.commands.traces import traces
from bitnet_cli.environment import refuse_odd_files
from bitnet_cli.errors import EXIT_USER
from bitnet_cli.reporter.terminal import printable_output

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class Bitnet(click.Group):
    """The command group: output that any terminal can show, and a quiet end at Ctrl-C."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        gc.set_threshold(100_000)  # imports make a million objects, which the collector would look at again and again
        for stream in (sys.stdout, sys.stderr):
            # "?" in place of what an ASCII terminal can't show
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        with printable_output():
            return super().main(*args, **kwargs)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Group by group: what belongs together stands together."""
        width = max(len(name) for name in self.commands)
        for title, commands in GROUPS.items():
            with formatter.section(title):
                limit = formatter.width - 6 - width
                formatter.write_dl(
                    [((each.name or "").ljust(width), each.get_short_help_str(limit)) for each in commands]
                )

    def invoke(self, context: click.Context) -> Any:
        refuse_odd_files()
        try:
            os.getcwd()
        except OSError:
            _end("error: the working folder is not there any more  → cd to another one")
        try:
            return super().invoke(context)
        except BrokenPipeError:  # who reads the output has enough: click ends quietly
            raise
        except OSError as error:
            _end(f"error: {_what(error)}  → correct the path, or the permissions")
        except MemoryError as error:
            said = f" ({error})" if str(error) else ""
            _end(f"error: out of memory{said}  → take a smaller model, or a bigger machine")
        except KeyboardInterrupt:
            click.echo("stopped; finished stages are kept; go on with the same command", err=True)
            sys.exit(130)  # 128 + SIGINT


def _what(error: OSError) -> str:
    named = [str(name) for name in (error.filename, error.filename2) if name]
    return ": ".join([" → ".join(named) or type(error).__name__, error.strerror or str(error)])


def _end(said: str) -> NoReturn:
    click.echo(said, err=True)
    sys.exit(EXIT_USER)


@click.group(cls=Bitnet, context_settings=CONTEXT)
@click.version_option(package_name="bitnet-cli", prog_name="bitnet")
def cli() -> None:
    """Distil any teacher LLM, hosted or local, into a 1.58-bit student.

    \b
    Examples:
      bitnet distil --teacher ORG/NAME --prompts chats.json
                                                  from a model and a file to a student
      bitnet init                                 manifests to start from
      bitnet run manifests/quickstart.toml        the whole job, on any laptop
      bitnet plan manifests/quickstart.toml       what that would do, and why
      bitnet run M.toml --set train.steps=400     the same with more steps
      bitnet report runs/quickstart               write the report again
      bitnet export runs/quickstart --to gguf,hf  for llama.cpp and transformers
      bitnet chat runs/quickstart                 talk with the student
    """


GROUPS: dict[str, tuple[click.Command, ...]] = {
    "Make a student": (distil_command, run_command, plan_command, sweep_command, probe_command, dry_run_command),
    "Use it": (generate_command, chat_command, compare_command, serve_command, export_command, push_command),
    "Runs and their data": (report_command, runs, traces, checkpoint_command),
    "Manifests": (init_command, manifests),
    "This installation": (doctor_command, plugins_command, sanity_command, completion_command),
}
"""The commands as ``--help`` shows them."""

for command in itertools.chain(*GROUPS.values()):
    cli.add_command(command)
