"""`bitnet serve`: a model behind OpenAI's API, on this machine."""

import contextlib
import importlib.util
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from bitnet_cli.commands.shared_options import CKPT, RUNTIME, find_model, open_model
from bitnet_cli.environment import env_file_option, load_environment, secret
from bitnet_cli.errors import UserError, library_errors

if TYPE_CHECKING:
    from bitnet_core.config.evaluate import RuntimeName

PORT = 8158


@attrs.frozen(kw_only=True)
class ServeOptions:
    """The values of the options of `bitnet serve`."""

    host: str
    port: int
    expose: bool
    api_key_env: str | None
    runtime: "RuntimeName | None"
    bits: str | None
    name: str | None
    max_new_tokens: int
    queue: int
    env_file: Path | None


@click.command("serve", short_help="Serve a student through OpenAI's API, on this machine.")
@CKPT
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="The address to listen on; one that other machines reach needs --expose and a key.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=PORT,
    show_default=True,
    help="The port to listen on; 0 takes any free one.",
)
@click.option("--expose", is_flag=True, help="Allow a --host that other machines reach; needs --api-key-env.")
@click.option("--api-key-env", metavar="NAME", help="Require the API key that the environment variable NAME holds.")
@RUNTIME
@click.option("--bits", type=click.Choice(["8", "4"]), help="Activation bits. Default: as it was trained.")
@click.option("--name", metavar="NAME", help="What clients call the model. Default: the run's name, or the file's.")
@click.option(
    "--max-new-tokens",
    type=click.IntRange(1),
    default=1024,
    show_default=True,
    metavar="N",
    help="The longest answer, in tokens, where a request names no limit.",
)
@click.option(
    "--queue",
    type=click.IntRange(0),
    default=64,
    show_default=True,
    metavar="N",
    help="How many requests may wait while one is answered.",
)
@env_file_option
def serve_command(checkpoint: Path, **options: Any) -> None:
    """Serve CKPT (a run folder, a checkpoint, or an export) through OpenAI's API on 127.0.0.1, until Ctrl-C.

    Chat completions and legacy completions, streamed or whole, with log-probabilities: docs/serve.md.

    \b
    Examples:
      bitnet serve runs/quickstart
      bitnet serve runs/quickstart/exports/student-tq2_0.gguf --port 0
      bitnet serve runs/quickstart --host 0.0.0.0 --expose --api-key-env MY_SERVER_KEY
    """
    with library_errors():
        if importlib.util.find_spec("aiohttp") is None:
            raise UserError("aiohttp is not installed", "pip install 'bitnet-cli[serve]'")
        serve_model(checkpoint, ServeOptions(**options))


def serve_model(checkpoint: Path, options: ServeOptions) -> None:
    """Serve until Ctrl-C. Raises UserError, CoreError; what can be refused without the model is refused first."""
    from bitnet_cli.serving.access_control import Access, is_loopback
    from bitnet_cli.serving.connections import MOST, SPARE_FILES, Connections, free_files
    from bitnet_cli.serving.routes import Service
    from bitnet_cli.serving.start_server import bound_socket, run_server
    from bitnet_cli.serving.waiting_line import Turns

    local = is_loopback(options.host)
    if not local and not options.expose:
        raise UserError(
            f"--host {options.host}: other machines could ask this server",
            "add --expose --api-key-env NAME, or leave --host out",
        )
    key_name = options.api_key_env
    if options.expose and key_name is None:
        raise UserError(
            "--expose: everybody who reaches this machine could ask", "add --api-key-env NAME, a variable with a key"
        )
    key = None if key_name is None else secret(load_environment(options.env_file), key_name, "--api-key-env")
    model = find_model(checkpoint)
    name = options.name or (model.run or model.place).resolve().name.removesuffix(".gguf")
    bits = None if options.bits is None else int(options.bits)

    def log(line: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more: that keeps no client from its answer
            click.echo(f"{time.strftime('%H:%M:%S')} {line}", err=True)

    with (
        bound_socket(options.host, options.port) as listening,
        open_model(model.place, bits, options.runtime) as opened,
    ):
        service = Service(
            model=name,
            turns=Turns(opened, options.queue),
            access=Access(local, key),
            default_tokens=options.max_new_tokens,
            created=int(model.place.stat().st_mtime),
            log=log,
            connections=Connections(max(4, min(MOST + options.queue, free_files() - SPARE_FILES)), log),
        )

        def ready() -> None:
            address, port = listening.getsockname()[:2]
            url = f"http://{f'[{address}]' if ':' in address else address}:{port}"
            click.echo(f"{name} at {url}/v1 ({opened.description}); chat at {url}/ ; Ctrl-C stops")

        run_server(service, listening, ready, last=lambda: click.echo("stopped", err=True))
