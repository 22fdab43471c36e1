"""`bitnet distil`: from a model's name and a file to a student, without a manifest of one's own; it writes one."""

import math
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from bitnet_cli.commands import completion
from bitnet_cli.environment import env_file_option
from bitnet_cli.errors import UserError, user_errors
from bitnet_cli.wording.toml_values import literal

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
    shell_complete=completion.setting,
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
        overrides = (*_for_baseline(overrides), *overrides)
        options = RunOptions(overrides=overrides, env_file=env_file, yes=yes)
        text, place = own_manifest(case, name), Path(f"{name}.toml")
        if case.minutes is not None and not only_print:
            _check_free(place)  # before the teacher is timed
            sizes = _sizes(case.minutes, Path(f".{name}.untimed.toml"), text, options)
            text = own_manifest(case, name, sizes)
        if only_print:
            click.echo(with_settings(text, overrides), nl=False)
        else:
            manifest = _kept(place, text)
            click.echo(f"manifest: {manifest}  (change it, and `bitnet run {manifest}` goes on from what is there)")
            code = _run(manifest, options)
            if code == 0:
                _show_students(manifest, options)
            sys.exit(code)


def _for_baseline(overrides: Sequence[str]) -> Iterator[str]:
    """[baseline] reads the same file: what is said of its columns for [collect] holds for both."""
    for override in overrides:
        if override.startswith("collect.columns."):
            yield override.replace("collect", "baseline", 1)


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
    from bitnet_cli.manifest.load import open_manifest
    from bitnet_cli.pipeline.estimates import fit_into, least_minutes, measured_speed
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
        told, enough = "its speed is not known", "raise --minutes"
        if speed is not None:
            told = f"it answers {speed.tokens_per_second:.1f} tokens a second"
            least = least_minutes(found, inputs, speed)
            enough = enough if least is None else f"give --minutes {least}"
        raise UserError(
            f"in {minutes:g} minutes there is no time to train with this teacher: {told}",
            f"{enough}, choose a smaller --teacher, or keep fewer layers (--student 0-3,28,29)",
        )
    sizes = {"train.steps": fit.steps, "train.budget_tokens": fit.budget_tokens}
    return sizes if fit.max_prompts is None else sizes | {"collect.max_prompts": fit.max_prompts}


def _kept(path: Path, text: str) -> Path:
    """The manifest as a file; one that is there and differs is the user's own work. Raises UserError."""
    from bitnet_cli import run_folder

    _check_free(path, text)
    try:
        run_folder.write_bytes(path, _sealed(text).encode())
    except OSError as error:
        raise _unwritable(path, error) from error
    return path


SEAL = "# Not changed since, if this is the start of the rest's sha256: "
"""The second line of a file: `bitnet distil` with other options may write it anew, unless somebody has changed it."""


def _sealed(text: str) -> str:
    first, _, rest = text.partition("\n")
    return f"{first}\n{SEAL}{sha256((first + rest).encode()).hexdigest()[:16]}\n{rest}"


def _check_free(path: Path, text: str | None = None) -> None:
    """Raises UserError where a file is there that a user has written or changed, and that isn't `text`."""
    try:
        there = path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise _unwritable(path, error) from error
    lines = there.split("\n")
    plain = "\n".join(lines[:1] + lines[2:])
    if there and there not in (text, _sealed(plain)):
        raise UserError(
            f"{path} is there already, with another content; nothing was written",
            f"go on with `bitnet run {path}`, or give another --name",
        )


def _unwritable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} can't be written: {error}", "work in a folder that can")


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


OWN = Path(__file__).parents[1] / "starter/manifests/own.toml"
_MOST_LAYERS = 10_000
_LAYERS = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")


@attrs.frozen(kw_only=True)
class OwnCase:
    """What `bitnet distil` is told. Places are as they were written: relative ones start at the working folder."""

    teacher: str
    prompts: str | None = None
    texts: str | None = None
    """One of both is there."""
    student: str | None = None
    """A model, or layers of the teacher: ``0-3,28,29``; None: all of them."""
    minutes: float | None = None
    skip_unusable: bool = False
    """Leave out rows of the files that can't be used."""

    def command(self) -> str:
        """What to type for it."""
        words = ["bitnet", "distil"]
        for key in ("teacher", "prompts", "texts", "student"):
            value = getattr(self, key)
            words += [] if value is None else [f"--{key}", value]
        words += [] if self.minutes is None else ["--minutes", f"{self.minutes:g}"]
        return shlex.join([*words, *(["--skip-unusable"] if self.skip_unusable else [])])


def own_manifest(case: OwnCase, name: str, sizes: Mapping[str, int] | None = None) -> str:
    """The text of a manifest that lies in the working folder. Raises UserError.

    `sizes`: ``collect.max_prompts``, ``train.steps``, ``train.budget_tokens``, as far as they are not `own.toml`'s.
    """
    text = OWN.read_text(encoding="utf-8")
    lines = text.splitlines()
    lines[0] = f"# Written by: {case.command()}"
    lines = [line for line in lines if not line.startswith("#:schema")]
    text = "\n".join(lines) + "\n"
    text = _put(text, "run", "name", literal(name))
    text = _put(text, "store", "root", '"runs"')
    text = _put(text, "teacher", "model", literal(case.teacher))
    asked = case.prompts or case.texts
    assert asked is not None
    text = _put(text, "baseline", "prompts", literal(asked))
    text = _put(text, "collect", "prompts", None if case.prompts is None else literal(case.prompts))
    text = _put(text, "collect", "texts", None if case.texts is None else literal(case.texts))
    if case.skip_unusable:
        for section in ("baseline", "collect"):
            text = _put(text, section, "skip_unusable", "true")
    for setting, value in (sizes or {}).items():
        section, _, key = setting.partition(".")
        text = _put(text, section, key, str(value))
    layers = None if case.student is None else layers_of(case.student)
    if layers is not None:
        text = _put(text, "student", "layers", f"[{', '.join(map(str, layers))}]")
    elif case.student is not None:
        text = _put(text, "student", "init_from", literal(case.student))
        text = _put(text, "project", "tokenizer", literal(case.student))
    return text


def with_settings(text: str, overrides: Sequence[str]) -> str:
    """The manifest with every ``KEY=VALUE`` in it. Raises UserError."""
    import tomli

    from bitnet_cli.manifest.overrides import parse_override

    for override in overrides:
        name, value = parse_override(override)
        section, _, key = name.rpartition(".")
        written = literal(value) if isinstance(value, str) else override.partition("=")[2].strip()
        if not section:
            first, end, rest = text.partition("\n")
            text = f"{first}{end}{key} = {written}\n{rest}"
            continue
        if f"[{section}]\n" not in text:
            text += f"\n[{section}]\n"
        text = _put(text, section, key, written).rstrip("\n") + "\n"
    try:
        tomli.loads(text)
    except tomli.TOMLDecodeError:
        names = ", ".join(each.partition("=")[0] for each in overrides)
        raise UserError(
            f"--set {names}: a whole table, or a key twice, can't be printed", "set keys one by one: SECTION.KEY=VALUE"
        ) from None
    return text


def layers_of(student: str) -> list[int] | None:
    """``0-3,28,29`` as numbers; None: it is a model. Raises UserError for a range that runs backwards."""
    if not _LAYERS.fullmatch(student):
        return None
    layers: list[int] = []
    for part in student.split(","):
        first, _, last = part.partition("-")
        if int(last or first) > _MOST_LAYERS:
            raise UserError(f"--student {student[:40]}: no model has so many layers", "count them from 0")
        span = range(int(first), int(last or first) + 1)
        if not span:
            raise UserError(f"--student {student}: {part} runs backwards", f"write {last}-{first}")
        layers += span
    return layers


def own_name(case: OwnCase) -> str:
    """What the run is called: the file and the teacher. ``chats-smollm2-135m-instruct``"""
    from bitnet_providers.hub.names import hub_name

    name = hub_name(case.teacher)
    teacher = Path(case.teacher).name if name is None else name.repo.partition("/")[2]
    file = Path(case.prompts or case.texts or "").name.partition(".")[0]
    words = f"{file}-{teacher.removesuffix('.gguf')}".lower()
    return re.sub(r"[^a-z0-9._-]+", "-", words)[:64].strip("-._") or "own"


def _put(text: str, section: str, key: str, value: str | None) -> str:
    """The text with ``key = value`` in its section, commented out or not before; None: without it.

    What `own.toml` says beside a value is of that value, and goes with it.
    """
    head, mark, rest = text.partition(f"[{section}]\n")
    body, gap, tail = rest.partition("\n\n")
    line = None if value is None else f"{key} = {value}"
    lines, found = [], False
    for each in body.splitlines():
        if re.match(rf"(# )?{key} = ", each):
            found = True
            lines += [] if line is None else [line]
        else:
            lines.append(each)
    if not found and line is not None:
        lines.append(line)
    return head + mark + "\n".join(lines) + gap + tail
