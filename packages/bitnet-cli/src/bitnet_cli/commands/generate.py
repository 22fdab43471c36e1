"""`bitnet generate`: one answer."""

import sys
from pathlib import Path
from typing import Any

import click

from bitnet_cli.commands.shared_options import CKPT, ask_of, ask_options, find_model, open_model, show
from bitnet_cli.errors import UserError, library_errors
from bitnet_cli.wording.hide_secrets import plain_json


@click.command("generate", short_help="Answer one prompt with a student.")
@CKPT
@click.argument("prompt", metavar="PROMPT")
@ask_options
@click.option("--plain", is_flag=True, help="Continue PROMPT as plain text, without the chat template.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: the text, its tokens, seconds, the runtime.")
def generate_command(checkpoint: Path, prompt: str, plain: bool, as_json: bool, **options: Any) -> None:
    """Answer PROMPT ("-" reads it from stdin) with CKPT: a run folder, a checkpoint, or an export.

    \b
    Examples:
      bitnet generate runs/quickstart "What is tea?"
      bitnet generate runs/quickstart/exports/student-tq2_0.gguf "What is tea?" --temperature 0.7 --seed 1
      bitnet generate runs/quickstart/checkpoints/step_100 "Tea is" --plain --max-new-tokens 20
      bitnet generate runs/quickstart "Name three teas, as JSON." --bits 8 --json
    """
    with library_errors():
        ask = ask_of(options)
        if plain and ask.system is not None:
            raise UserError("--system and --plain: a system message needs the chat template", "leave one of them out")
        text = _stdin() if prompt == "-" else prompt
        if not text:
            raise UserError("PROMPT is empty", "write what to ask")
        model = find_model(checkpoint)
        from bitnet_core.runtime.contract import answer

        with open_model(model.place, ask.bits, ask.runtime) as runtime:
            said = answer(
                runtime,
                text if plain else [*ask.opening(), {"role": "user", "content": text}],
                ask.sampling(),
                (lambda piece: None) if as_json else show,
            )
            about = {"model": str(model.place), "runtime": runtime.description}
    click.echo(plain_json(said.record() | about, indent=2) if as_json else "")


def _stdin() -> str:
    try:
        return sys.stdin.read().strip()
    except UnicodeDecodeError as error:
        raise UserError(f"stdin is not text ({error.reason} at byte {error.start})", "write it in UTF-8") from None
