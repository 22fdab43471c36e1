"""`bitnet push`: a run's exports, and if asked its traces, to the Hugging Face Hub."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import click

from bitnet_cli.commands import completion
from bitnet_cli.environment import env_file_option
from bitnet_cli.errors import UserError, library_errors

if TYPE_CHECKING:
    from bitnet_providers.hub.names import HubName
    from bitnet_providers.hub.upload import Upload


@attrs.frozen(kw_only=True)
class Push:
    """What `bitnet push` is told."""

    run: Path
    repo: str
    traces: str | None
    public: bool
    licence: str | None
    base_model: str | None


@click.command("push", short_help="Upload a run's exports to the Hugging Face Hub.")
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path), shell_complete=completion.run_folder)
@click.argument("repo", metavar="ORG/NAME")
@click.option("--traces", metavar="ORG/NAME", help="Upload the KD traces, too, as this dataset.")
@click.option("--public", is_flag=True, help="Everybody may read it. Without it new repositories are private.")
@click.option("--license", "licence", metavar="ID", help="E.g. apache-2.0. Default: that of the model it started as.")
@click.option("--base-model", metavar="ORG/NAME", help="The teacher's or start's name on the Hub, if it was a folder.")
@click.option("--dry-run", is_flag=True, help="Show files and cards; send nothing, create nothing.")
@env_file_option
def push_command(dry_run: bool, env_file: Path | None, **given: object) -> None:
    """Upload the exports of the run folder RUN to the model ORG/NAME on the Hugging Face Hub, with a model card.

    The card names the base model, the scores, the licence and the teacher's terms. The files of exports/hf lie at
    the root, so that transformers opens ORG/NAME. The token is HF_TOKEN's, or that of `hf auth login`.

    \b
    Examples:
      bitnet push runs/quickstart me/tea-1.58bit --dry-run
      bitnet push runs/quickstart me/tea-1.58bit --traces me/tea-traces
      bitnet push runs/quickstart me/tea-1.58bit --public --license apache-2.0
    """
    with library_errors():
        push = Push(**given)  # type: ignore[arg-type]
        _push(push, env_file, dry_run)


def _push(push: Push, env_file: Path | None, dry_run: bool) -> None:
    from bitnet_cli import environment

    found = environment.load_environment(env_file)
    environment.export(found)  # the Hub's client reads it
    if environment.skip_external(found) and not dry_run:
        raise UserError("SKIP_EXTERNAL=1 bars uploads", "unset it; `--dry-run` shows what would be sent")
    from bitnet_providers.hub.upload import check_name, check_rights, send

    for name in (push.repo, push.traces, push.base_model):
        if name is not None:
            check_name(name)
    with tempfile.TemporaryDirectory(prefix="bitnet-push-") as place:
        uploads = _uploads(push, Path(place))
        if dry_run:
            for upload in uploads:
                _show(upload)
            click.echo("nothing was sent: leave --dry-run out")
            return
        for target in check_rights(uploads):
            total = sum(
                len(file) if isinstance(file, bytes) else file.stat().st_size for file in target.upload.files.values()
            )
            click.echo(
                f"sending {len(target.upload.files)} files, {total / 1e6:,.1f} MB, to {target.upload.repo}", err=True
            )
            page = send(target, f"Upload of the run {push.run.resolve().name}")
            click.echo(f"{page}  ({'private' if target.private else 'public'})")
            if target.others:
                click.echo(f"  there from before, and left as they are: {', '.join(target.others[:10])}")


def _uploads(push: Push, place: Path) -> "list[Upload]":
    """The dataset first: the model's card names it. Raises UserError, CoreError."""
    from bitnet_cli.publishing.files_to_push import CARD, find_exports, shared_shards
    from bitnet_cli.publishing.hub_cards import model_card, traces_card
    from bitnet_cli.publishing.licences import read_origin
    from bitnet_cli.report.read_run import read_run
    from bitnet_cli.run_folder import is_run_folder
    from bitnet_providers.hub.upload import Upload

    if not is_run_folder(push.run):
        raise UserError(f"{push.run} is no run folder", "name one that `bitnet run` made, e.g. runs/quickstart")
    exports = find_exports(push.run)
    origin = read_origin(read_run(push.run), push.base_model, _licence)
    if origin.base_model is None and (local := [each for each in origin.parents() if not each.is_service]):
        click.echo(f"note: --base-model ORG/NAME says what {local[-1].title} is on the Hub, for the card", err=True)
    licence = origin.licence if push.licence is None else {"license": push.licence}
    uploads = []
    if push.traces is not None:
        shards: dict[str, Path | bytes] = {**shared_shards(push.run, place)}
        card = traces_card(push.run, push.traces, origin, licence if push.licence else {}, push.repo)
        shards[CARD] = card.encode()
        uploads.append(Upload(repo=push.traces, repo_type="dataset", files=shards, private=not push.public))
    card = model_card(push.run, push.repo, exports, origin, licence, push.traces)
    files: dict[str, Path | bytes] = {**exports.files, CARD: card.encode()}
    return [*uploads, Upload(repo=push.repo, repo_type="model", files=files, private=not push.public)]


def _licence(name: "HubName") -> Mapping[str, str]:
    """As the model's card on the Hub states it; a note where it can't be asked."""
    from bitnet_providers.contract import ProviderError
    from bitnet_providers.hub.upload import licence_of

    try:
        return licence_of(name)
    except ProviderError as error:
        click.echo(f"note: the licence of {name.repo} is not known: {error.why}", err=True)
        return {}


def _show(upload: "Upload") -> None:
    click.echo(f"{upload.page}  ({'private' if upload.private else 'public'} {upload.repo_type})")
    for name, file in upload.files.items():
        size = len(file) if isinstance(file, bytes) else file.stat().st_size
        click.echo(f"  {size:>14,} bytes  {name}")
    card = upload.files["README.md"]
    assert isinstance(card, bytes)
    click.echo(f"\n--- README.md of {upload.repo}\n{card.decode()}\n---")
