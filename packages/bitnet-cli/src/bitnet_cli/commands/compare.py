"""`bitnet compare`: the student beside its teacher."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bitnet_cli.commands.shared_options import (
    CKPT,
    Ask,
    Model,
    ask_of,
    ask_options,
    find_model,
    open_model,
)
from bitnet_cli.environment import env_file_option, skip_external
from bitnet_cli.errors import ProblemsError, UserError, library_errors, problem_of
from bitnet_cli.wording.hide_secrets import plain_json

if TYPE_CHECKING:
    from bitnet_cli.stages.open_teacher import TeacherHandle
    from bitnet_core.runtime.contract import Message, Runtime
    from bitnet_providers.contract import Completion, Teacher


@click.command("compare", short_help="Put a student's answers beside its teacher's.")
@CKPT
@click.argument("prompts", metavar="[PROMPT]...", nargs=-1)
@ask_options
@click.option(
    "--manifest",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The manifest whose teacher to ask. Default: that of the run that CKPT lies in.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@env_file_option
def compare_command(
    checkpoint: Path,
    prompts: tuple[str, ...],
    manifest: Path | None,
    as_json: bool,
    env_file: Path | None,
    **options: Any,
) -> None:
    """Put CKPT's answers beside the teacher's. Without PROMPT, each line of stdin is a prompt.

    Below them stands what the run's evaluation measured of both, with ties told as such.

    The teacher is asked again each time, and a hosted one costs money; SKIP_EXTERNAL=1 forbids that.

    \b
    Examples:
      bitnet compare runs/quickstart "What is tea?"
      bitnet compare runs/quickstart/exports/student-tq2_0.gguf "What is tea?" "And coffee?" --json
      bitnet compare my-model.gguf "What is tea?" --manifest manifests/quickstart.toml
    """
    with library_errors():
        ask = ask_of(options)
        model = find_model(checkpoint)
        teacher = _teacher(manifest, model.run, env_file)
        found: list[dict[str, Any]] = []
        try:
            with open_model(model.place, ask.bits, ask.runtime) as runtime:
                for prompt in prompts or _lines():
                    messages = [*ask.opening(), {"role": "user", "content": prompt}]
                    found.append({"prompt": prompt} | _both(runtime, teacher, messages, ask))
                    if not as_json:
                        _print(found[-1])
                about = {"model": str(model.place), "runtime": runtime.description}
        finally:
            with contextlib.suppress(Exception):  # the answers are what counts
                teacher.close()
        if not found:
            raise UserError("nothing to compare", "name a PROMPT, or write lines to stdin")
    measured = _measured(model)
    if as_json:
        click.echo(plain_json(about | {"answers": found, "measured": measured}, indent=2))
    elif measured:
        _print_measured(measured)


def _measured(model: Model) -> list[dict[str, Any]]:
    """What the evaluation of its run scored of both; nothing where that was of another checkpoint, or there is none."""
    from bitnet_cli.report.read_run import read_run
    from bitnet_cli.report.sections.benchmarks import compared_scores

    if model.run is None:
        return []
    report = read_run(model.run).evaluation
    of_another = model.place.name.startswith("step_") and model.place.name != report.get("checkpoint")
    return [] if of_another else list(compared_scores(report))


def _print_measured(measured: list[dict[str, Any]]) -> None:
    """A few answers say little: what all documents and questions said."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from bitnet_cli.report.number_format import interval, number
    from bitnet_cli.reporter.terminal import open_console

    table = Table(title="In the run's evaluation", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("score", "student", "teacher", "difference, 95 %"):
        table.add_column(name, justify="left" if name == "score" else "right")
    for row in measured:
        difference = interval(row["difference_95"]) if row["difference_95"] else "–"
        if row["tie"]:
            difference = f"tie ({difference})"
        table.add_row(*map(Text, (row["score"], number(row["student"]), number(row["teacher"]), difference)))
    open_console().print(table)


def _lines() -> list[str]:
    from bitnet_cli.commands.chat import lines

    return [line for line in lines(interactive=False) if line]


def _teacher(manifest: Path | None, run: Path | None, env_file: Path | None) -> "TeacherHandle":
    """The teacher, not asked yet. Raises UserError where no manifest is known, or its teacher can't be used."""
    from bitnet_cli.manifest.load import open_manifest
    from bitnet_cli.stages.open_teacher import TeacherHandle

    file = manifest if manifest is not None or run is None else run / "manifest.resolved.toml"
    if file is None:
        raise UserError("CKPT lies in no run folder, so its teacher is not known", "name a manifest with --manifest")
    opened = open_manifest(file, env_file=env_file)
    tagged = opened.manifest.teacher
    if tagged is None:
        raise UserError(f"{file}: has no [teacher]", "name a manifest that has one with --manifest")
    plugin = opened.plugins.require_teacher(tagged.kind)
    if problems := plugin.check(tagged.options) if plugin.check is not None else []:
        raise ProblemsError([problem_of(problem).within("teacher") for problem in problems])
    handle = TeacherHandle(plugin, tagged.options, skip_external=skip_external(opened.environment))
    if handle.skip_external and handle.external:
        raise UserError(f'SKIP_EXTERNAL=1 forbids asking teacher "{plugin.name}"', "unset it to allow that")
    return handle


def _both(runtime: "Runtime", teacher: "TeacherHandle", messages: "list[Message]", ask: Ask) -> dict[str, Any]:
    """Both answers to one conversation, as records. The student first: it costs nothing if it fails."""
    from bitnet_core.runtime.contract import answer

    student = answer(runtime, messages, ask.sampling())

    async def put(asked: "Teacher") -> "tuple[Completion, Mapping[str, Any]]":
        return await asked.generate(request), asked.description

    from bitnet_providers.contract import GenerateRequest, Sampling

    request = GenerateRequest(
        messages=tuple(messages),
        sampling=Sampling(
            temperature=ask.temperature, top_p=ask.top_p, max_new_tokens=ask.max_new_tokens, seed=ask.seed
        ),
        top_logprobs=0,
    )
    said, about = teacher.ask(put)
    text = said.text.decode("utf-8", "replace")
    theirs = {
        "text": text.removesuffix(str(about.get("end_of_turn") or "")),
        "reason": said.finish_reason,
        "model": str(about.get("model") or said.model),
        "seconds": said.latency_s,
    }
    return {"student": student.record(), "teacher": theirs}


def _print(each: dict[str, Any]) -> None:
    """Two columns under the question."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from bitnet_cli.reporter.terminal import open_console

    table = Table(title=Text(each["prompt"]), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, expand=True)
    table.add_column(Text("student"), ratio=1, overflow="fold")
    table.add_column(Text(f"teacher ({each['teacher']['model']})"), ratio=1, overflow="fold")
    table.add_row(Text(each["student"]["text"]), Text(each["teacher"]["text"]))
    open_console().print(table)
