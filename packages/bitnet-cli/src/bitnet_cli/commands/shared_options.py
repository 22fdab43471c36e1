"""What several subcommands share: the options of a manifest, of stages and of a model, and what CKPT stands for."""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from bitnet_cli.commands import completion
from bitnet_cli.environment import env_file_option
from bitnet_cli.errors import UserError
from bitnet_cli.run_folder import is_run_folder
from bitnet_core.config.evaluate import RUNTIME_NAMES

if TYPE_CHECKING:
    from bitnet_core.config.evaluate import RuntimeName
    from bitnet_core.runtime.contract import Message, Runtime, Sampling


def manifest_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The manifest, as `manifest`: Path, with `overrides`: tuple[str, ...] and `env_file`: Path | None."""
    for option in (
        env_file_option,
        click.option(
            "--set",
            "overrides",
            multiple=True,
            metavar="KEY=VALUE",
            shell_complete=completion.setting,
            help="Change one setting; VALUE as TOML writes it. May be repeated.",
        ),
        click.argument("manifest", type=click.Path(path_type=Path), shell_complete=completion.manifest),
    ):
        command = option(command)
    return command


def stage_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Which stages: `stages`: str | None (see `stage_names`), `start`: str | None, and `fresh`: bool."""
    for option in (
        click.option(
            "--fresh", is_flag=True, help="Redo every stage. A paid teacher's answers are kept and used again."
        ),
        click.option(
            "--from",
            "start",
            metavar="STAGE",
            shell_complete=completion.stage,
            help="Redo this stage and all after it.",
        ),
        click.option(
            "--stages",
            metavar="A,B",
            shell_complete=completion.several(completion.stages),
            help="Only these stages.",
        ),
    ):
        command = option(command)
    return command


def stage_names(stages: str | None) -> tuple[str, ...]:
    """What ``--stages`` names; none where it is not given. Raises UserError where it is empty."""
    names = tuple(name.strip() for name in (stages or "").split(",") if name.strip())
    if stages is not None and not names:
        raise UserError("--stages: names no stage", "write e.g. --stages train,evaluate")
    return names


CKPT = click.argument(
    "checkpoint", metavar="CKPT", type=click.Path(path_type=Path), shell_complete=completion.run_folder
)
RUNTIME = click.option(
    "--runtime",
    type=click.Choice(RUNTIME_NAMES),
    help="What computes the answers; packed: the two-bit weights. Default: llamacpp for a GGUF file, else torch.",
)
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@attrs.frozen(kw_only=True)
class Ask:
    """How the model is asked: the values of the options."""

    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    system: str | None
    bits: int | None
    runtime: "RuntimeName | None" = None

    def sampling(self) -> "Sampling":
        from bitnet_core.runtime.contract import Sampling

        return Sampling(
            max_new_tokens=self.max_new_tokens, temperature=self.temperature, top_p=self.top_p, seed=self.seed
        )

    def opening(self) -> "list[Message]":
        """The messages that every conversation starts with."""
        return [] if self.system is None else [{"role": "system", "content": self.system}]


def ask_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of `Ask`, each as an argument."""
    for option in (
        RUNTIME,
        click.option("--bits", type=click.Choice(["8", "4"]), help="Activation bits. Default: as it was trained."),
        click.option("--system", metavar="TEXT", help="A system message."),
        click.option(
            "--seed",
            type=click.IntRange(0, 2**32 - 1),
            default=0,
            show_default=True,
            help="The same seed draws the same answer.",
        ),
        click.option(
            "--top-p",
            type=click.FloatRange(0, 1, min_open=True),
            default=1.0,
            show_default=True,
            help="Draw only from the likeliest tokens that together have this probability.",
        ),
        click.option(
            "--temperature",
            type=click.FloatRange(0),
            default=0.0,
            show_default=True,
            help="0 always takes the likeliest token.",
        ),
        click.option(
            "--max-new-tokens",
            type=click.IntRange(1),
            default=256,
            show_default=True,
            metavar="N",
            help="The longest answer, in tokens.",
        ),
    ):
        command = option(command)
    return command


def ask_of(options: dict[str, Any]) -> Ask:
    bits = options.pop("bits")
    return Ask(bits=None if bits is None else int(bits), **options)


@attrs.frozen
class Model:
    """What CKPT stands for."""

    place: Path
    """A folder of weights, or a GGUF file."""
    run: Path | None
    """The run folder that it lies in, if it lies in one."""


def find_model(place: Path) -> Model:
    """A run folder stands for its latest checkpoint. Raises UserError, CoreError; needs no torch but for a run."""
    if not place.exists():
        raise UserError(
            f"{place}: nothing there",
            "name a run folder (runs/quickstart), a checkpoint, or an export "
            "(runs/quickstart/exports/student-tq2_0.gguf)",
        )
    if place.is_dir() and (is_run_folder(place) or (place / "checkpoints").is_dir()):
        with shown_loading():
            from bitnet_core.model.choose_checkpoint import latest_checkpoint

        return Model(latest_checkpoint(place / "checkpoints"), place)
    from bitnet_core.runtime.open import check_place

    check_place(place)
    inside = (folder for folder in place.resolve().parents[:2] if is_run_folder(folder))
    return Model(place, next(inside, None))


@contextmanager
def shown_loading() -> Iterator[None]:
    """On a terminal the seconds in which libraries and weights are loaded are not silent; stdout is the answer's."""
    if not sys.stderr.isatty():
        yield
        return
    from bitnet_cli.reporter.terminal import open_console

    with open_console(stderr=True).status("loading the model ..."):
        yield


@contextmanager
def open_model(place: Path, bits: int | None, kind: "RuntimeName | None" = None) -> Iterator["Runtime"]:
    """Load it, in the runtime `kind` (None: by what lies there).

    What the libraries say while they do is kept away: stdout belongs to the answer.
    """
    with ExitStack() as opened:
        with shown_loading():
            if place.is_dir():
                from transformers.utils import logging

                logging.set_verbosity_error()
            from bitnet_core.runtime.open import open_runtime

            runtime = opened.enter_context(open_runtime(place, bits=bits, kind=kind))
        yield runtime


def show(piece: str) -> None:
    """Write a piece of an answer at once. Control characters, which a model may have learned, are left out."""
    click.echo(_UNPRINTABLE.sub("", piece), nl=False)
    sys.stdout.flush()
