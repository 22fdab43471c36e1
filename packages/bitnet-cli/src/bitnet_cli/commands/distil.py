"""`bitnet distil`: from a model's name and a file to a student, without a manifest of one's own."""

import math
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bitnet_cli.commands import option_suggestions
from bitnet_cli.environment import env_file_option
from bitnet_cli.errors import UserError, user_errors

if TYPE_CHECKING:
    from bitnet_cli.pipeline.engine import RunOptions


@click.command("distil", short_help="From a model and a file to a student in GGUF, in one command.")
@click.option("--teacher", required=True, metavar="MODEL", help="A name on the Hugging Face Hub, a folder, or a .gguf.")
@click.option("--prompts", metavar="FILE", help="What the teacher answers: .jsonl, .json, .csv, .parquet ...")
@click.option("--texts", metavar="FILE", help="Answers that are there, which the teacher scores: cheaper.")
@click.option("--student", metavar="MODEL|LAYERS", help="A smaller model, or layers (0-3,28,29); else all.")
@click.option(
    "--minutes", type=click.FloatRange(min=0, min_open=True), metavar="N", help="How long it may take, about."
)
@click.option("--skip-unusable", is_flag=True, help="Leave out rows that can't be used, and tell which.")
@click.option("--name", help="What the run is called (default: the file's name and the model's).")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    shell_complete=option_suggestions.setting,
    help="Change one setting, as for `bitnet run`.",
)
@click.option("--print", "only_print", is_flag=True, help="Print the manifest, and do nothing.")
@click.option("--yes", is_flag=True, help="Answer yes to questions, such as the one before an expensive collection.")
@env_file_option
def distil_command(
    only_print: bool, name: str | None, overrides: tuple[str, ...], yes: bool, env_file: Path | None, **given: Any
) -> None:
    """Distil TEACHER into a ternary student for llama.cpp, with what it says to the prompts of a file.

    Writes NAME.toml, the manifest that it runs: change it and `bitnet run NAME.toml` goes on from what is there.
    With --minutes the teacher is timed first; how much is asked and trained follows from its speed.

    \b
    Examples:
      bitnet distil --teacher HuggingFaceTB/SmolLM2-135M-Instruct --prompts chats.json --minutes 30
      bitnet distil --teacher ./my-model --student 0-3,28,29 --prompts prompts.txt --texts answers.jsonl
      bitnet distil --teacher ORG/BIG --student ORG/SMALL --prompts chats.json --print > my.toml
    """
    with user_errors():
        from bitnet_cli.manifest.distil_manifest import OwnCase, own_manifest, own_name, with_settings
        from bitnet_cli.pipeline.engine import RunOptions

        for option, value in given.items():
            if isinstance(value, str) and not value.strip():
                raise UserError(f"--{option} is empty", f"name what you mean, or leave --{option} out")
        case = OwnCase(**given)
        if case.prompts is None and case.texts is None:
            raise UserError("there is nothing to ask about", "give --prompts FILE, --texts FILE, or both")
        if case.minutes is not None and not math.isfinite(case.minutes):
            raise UserError(f"--minutes {case.minutes} is no length of time", "give a number of minutes")
        name = name or own_name(case)
        _check_name(name)
        options = RunOptions(overrides=overrides, env_file=env_file, yes=yes)
        text = own_manifest(case, name)
        if case.minutes is not None and not only_print:
            sizes = _sizes(case.minutes, Path(f".{name}.untimed.toml"), text, options)
            text = own_manifest(case, name, sizes)
        if only_print:
            click.echo(with_settings(text, overrides), nl=False)
        else:
            manifest = _kept(Path(f"{name}.toml"), text)
            click.echo(f"manifest: {manifest}  (change it, and `bitnet run {manifest}` goes on from what is there)")
            code = _run(manifest, options)
            if code == 0:
                _show_students(manifest, options)
            sys.exit(code)


def _check_name(name: str) -> None:
    """Before a file is called so. Raises UserError."""
    from bitnet_storage.names_and_paths import run_name_problem

    if (problem := run_name_problem(name)) is not None:
        raise UserError(f"--name: {problem}", "choose another name")


def _show_students(manifest: Path, options: "RunOptions") -> None:
    """Where the files are that this was for."""
    from bitnet_cli.manifest.load import open_manifest
    from bitnet_cli.stages.storage import known_folder

    folder = known_folder(open_manifest(manifest, options.overrides, options.env_file).manifest)
    for file in [] if folder is None else sorted((folder / "exports").glob("*.gguf")):
        click.echo(f"student: {file}")


def _sizes(minutes: float, manifest: Path, text: str, options: "RunOptions") -> dict[str, int]:
    """What fits into the time: the baseline is run for the teacher's speed, and is done then. Raises UserError."""
    import attrs

    from bitnet_cli.manifest.load import open_manifest
    from bitnet_cli.pipeline.estimates import fit_into, measured_speed
    from bitnet_cli.stages.storage import known_folder
    from bitnet_providers.contract import ProviderError
    from bitnet_providers.prompts.load_prompts import load_inputs

    manifest.write_text(text, encoding="utf-8")
    try:
        found = open_manifest(manifest, options.overrides, options.env_file).manifest
        assert found.collect is not None
        try:
            inputs = load_inputs(found.collect)
        except ProviderError as error:
            raise UserError(error.why, error.fix) from error
        again = shlex.join(["bitnet", *sys.argv[1:]])  # this manifest is gone when somebody reads of a failure
        timing = attrs.evolve(options, only=("storage", "baseline"), again=again)
        if (code := _run(manifest, timing, shows_plan=False)) != 0:
            sys.exit(code)
        speed = measured_speed(found, known_folder(found))
    finally:
        manifest.unlink()
    fit = None if speed is None else fit_into(minutes, found, inputs, speed)
    if fit is None or speed is None:
        told = (
            "its speed is not known" if speed is None else f"it answers {speed.tokens_per_second:.1f} tokens a second"
        )
        raise UserError(
            f"in {minutes:g} minutes there is no time to train with this teacher: {told}",
            "raise --minutes, choose a smaller --teacher, or keep fewer layers (--student 0-3,28,29)",
        )
    sizes = {"train.steps": fit.steps, "train.budget_tokens": fit.budget_tokens}
    return sizes if fit.max_prompts is None else sizes | {"collect.max_prompts": fit.max_prompts}


def _kept(path: Path, text: str) -> Path:
    """The manifest as a file; one that is there and differs is the user's own work. Raises UserError."""
    from bitnet_cli import run_folder

    try:
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise UserError(
                f"{path} is there already, with another content; nothing was written",
                f"go on with `bitnet run {path}`, or give another --name",
            )
        run_folder.write_bytes(path, text.encode())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be written: {error}", "work in a folder that can") from error
    return path


def _run(manifest: Path, options: "RunOptions", *, shows_plan: bool = True) -> int:
    """The plan first: what is wrong is told before anything is fetched or asked."""
    from bitnet_cli.commands.plan import show_plan
    from bitnet_cli.environment import skip_external
    from bitnet_cli.manifest.load import open_manifest
    from bitnet_cli.pipeline.engine import go_on_command, open_run, run_pipeline
    from bitnet_cli.pipeline.make_plan import make_plan
    from bitnet_cli.pipeline.run_or_skip import Request
    from bitnet_cli.reporter.progress import open_reporter
    from bitnet_cli.reporter.terminal import open_console
    from bitnet_cli.stages import PIPELINE

    if shows_plan:
        found = open_manifest(manifest, options.overrides, options.env_file)
        request = Request(skip_external=skip_external(found.environment))
        planned = make_plan(found.manifest, found.plugins, PIPELINE, request)
        show_plan(planned, open_console())
        if planned.problems:
            return 2
    command = options.again or go_on_command(manifest, options.overrides, options.env_file)
    with open_reporter(command, quiet=False, as_json=False) as reporter:
        return run_pipeline(open_run(manifest, options, reporter))
