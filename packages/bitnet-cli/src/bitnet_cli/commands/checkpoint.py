"""`bitnet checkpoint`: a checkpoint that several processes wrote in parts, as one plain folder."""

from pathlib import Path

import click

from bitnet_cli.errors import UserError, user_errors


@click.command("checkpoint", short_help="Make one plain folder of a checkpoint in parts.")
@click.argument("folder", metavar="CHECKPOINT", type=click.Path(path_type=Path))
def checkpoint_command(folder: Path) -> None:
    """Make one plain folder of CHECKPOINT, in place; nothing happens where it is one already.

    A training on several devices writes its checkpoints in parts, and makes plain folders of them when it ends. Of one
    that goes on, or was stopped, this makes one that can be generated with, exported and opened in transformers.

    \b
    Example:
      bitnet checkpoint runs/quickstart/checkpoints/step_50
    """
    from bitnet_core.errors import CoreError
    from bitnet_core.training.sharded_checkpoint import make_plain

    with user_errors(CoreError):
        if not (folder / "training.json").is_file():  # nobody should read that a run's folder be deleted
            found = (each for each in folder.glob("checkpoints/step_*/training.json") if each.parent.name[5:].isdigit())
            steps = sorted((each.parent for each in found), key=lambda each: int(each.name[5:]))
            fix = f"name one of its checkpoints: {steps[-1]}" if steps else "name a folder checkpoints/step_N of a run"
            raise UserError(f"{folder} is no checkpoint: it has no training.json", fix)
        make_plain(folder)
    click.echo(f"{folder} is one plain folder")
