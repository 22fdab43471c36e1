"""Where the student's tokenizer and starting weights lie, as the manifest says: a folder, or the teacher's."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from bitnet_cli import run_folder
from bitnet_cli.errors import Problem, problem_of
from bitnet_cli.manifest.stage_needs import CALIBRATE
from bitnet_cli.stages.open_teacher import no_folder
from bitnet_cli.stages.stage import Context
from bitnet_core.calibration.why_not_calibrated import why_not_calibrated as why_not_student
from bitnet_core.config.student import CALIBRATED, LEAST_SQUARES, LLAMA, TEACHERS, StudentConfig
from bitnet_core.errors import CoreError
from bitnet_core.traces.tokenizer_files import has_template, read_template, tokenizer_files
from bitnet_core.weight_format import FIX, architecture_problem, start_problem, start_problems, start_refused
from bitnet_providers.hub.names import advice, hub_name
from bitnet_providers.hub.snapshots import cached_folder, model_snapshot, offline_problem
from bitnet_providers.teachers.local.model_source import weight_problems

if TYPE_CHECKING:
    from bitnet_cli.manifest import Manifest
    from bitnet_cli.plugins.catalog import Plugins

TEACHER = "teacher"
"""The word that stands for the teacher's own folder."""


def tokenizer_folder(context: Context) -> Path:
    """The student's tokenizer. Raises UserError where the teacher has none to lend."""
    assert context.manifest.project is not None
    tokenizer = context.manifest.project.tokenizer
    return context.teacher.model_folder("project.tokenizer") if str(tokenizer) == TEACHER else _here(tokenizer)


def chat_template(context: Context) -> Path | None:
    """The file with the student's chat template; None: the tokenizer's own.

    A student with the teacher's tokenizer has the template that the teacher was asked with.
    """
    project, teacher = context.manifest.project, context.teacher
    assert project is not None
    if project.chat_template:
        return Path(project.chat_template)
    if str(project.tokenizer) != TEACHER or teacher.plugin is None:
        return None
    if own := getattr(teacher.options, "chat_template", ""):
        return Path(own)
    folder = teacher.model_folder("project.tokenizer")
    if has_template(folder) or teacher.plugin.capabilities_with(teacher.options).chat:
        return None
    from bitnet_providers.teachers.local.chat_template import plain_template_of

    return plain_template_of(folder)


def starting_weights(context: Context) -> Path | None:
    """The folder that the student starts from; None: random weights."""
    assert context.manifest.student is not None
    start = context.manifest.student.init_from
    if not start:
        return None
    return context.teacher.model_folder("student.init_from") if start == TEACHER else _here(start)


def student_config(manifest: "Manifest") -> StudentConfig:
    """The manifest's [student], with the folder in place of a name of the Hub. Raises ProviderError."""
    student = manifest.student
    assert student is not None
    place = student.init_from
    return student if place in (TEACHER, "") else attrs.evolve(student, init_from=str(_here(place)))


def why_not_calibrated(manifest: "Manifest") -> str | None:
    """Why the student doesn't start calibrated; None: it does."""
    student = manifest.student
    if student is None:
        return "there is no [student]"
    if student.start is None and CALIBRATE.name not in manifest.run.stages:
        return f"run.stages leaves {CALIBRATE.name} out"
    return why_not_student(student, _folder(manifest, student.init_from))


def calibrated_start(context: Context) -> Path | None:
    """The checkpoint that the stage calibrate has made, where the student starts from it."""
    return None if why_not_calibrated(context.manifest) else context.folder / run_folder.CALIBRATED_FOLDER


def tokenizer_problems(manifest: "Manifest", plugins: "Plugins") -> Iterator[Problem]:
    """Why there is no tokenizer for the student, or no chat template that it could ask with, each with its fix."""
    if manifest.project is None:
        return
    place = str(manifest.project.tokenizer)
    yield from _problems(manifest, plugins, "project.tokenizer", place)
    if manifest.project.chat_template:
        try:
            read_template(Path(manifest.project.chat_template))
        except CoreError as error:
            yield problem_of(error).within("project.chat_template")
    elif (
        place != TEACHER
        and _has_conversations(manifest)
        and (folder := _folder(manifest, place)) is not None
        and _lacks_template(folder)
    ):
        yield Problem(
            f"project.tokenizer: {place} has no chat template, and the student learns conversations",
            "set project.chat_template to a file with one (Jinja)",
        )


def _lacks_template(folder: Path) -> bool:
    """Whether there is a tokenizer without a chat template."""
    return bool(tokenizer_files(folder)) and not has_template(folder)


def _has_conversations(manifest: "Manifest") -> bool:
    """Whether the teacher is asked questions, and not only for its opinion of texts."""
    collect = manifest.collect
    if collect is None:
        return False
    return collect.prompts is not None or (collect.dataset is not None and collect.dataset.gives == "prompts")


def student_problems(manifest: "Manifest", plugins: "Plugins") -> Iterator[Problem]:
    """Why there is no tokenizer for the student, or nothing that it can start from, each with its fix."""
    yield from tokenizer_problems(manifest, plugins)
    if manifest.student is None:
        return
    start = str(manifest.student.init_from or "")
    yield from _problems(manifest, plugins, "student.init_from", start)
    if manifest.student.start == CALIBRATED and (why := why_not_calibrated(manifest)):
        yield Problem(f'student.start = "{CALIBRATED}": {why}', f'set student.start = "{LEAST_SQUARES}"')
    folder = _folder(manifest, start)
    if folder is None:
        return
    if problem := start_problem(folder):
        yield Problem(f"student.init_from: {folder} can't start a student: {problem}", FIX)
        return
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # the stage says it, with all that it knows
        return
    if not isinstance(config, dict):
        return
    if manifest.student.architecture != LLAMA:
        if problem := architecture_problem(manifest.student.architecture, config):
            yield Problem(f"student.architecture: {folder}: {problem}", f'set student.architecture = "{TEACHERS}"')
    elif problems := start_problems(config):
        yield problem_of(start_refused(folder, problems))
    there, largest = config.get("num_hidden_layers"), max(manifest.student.layers or (), default=0)
    if isinstance(there, int) and largest >= there:
        yield Problem(
            f"student.layers: {folder} has {there} layers, counted from 0: there is no layer {largest}",
            f"choose among 0 to {there - 1}",
        )


def only_llama(manifest: "Manifest", what: str, instead: str) -> Iterator[Problem]:
    """The problem of a setting that only the student that is written here has, where it is another one."""
    if manifest.student is not None and manifest.student.architecture != LLAMA:
        yield Problem(
            f'{what} is for students of architecture "{LLAMA}", and student.architecture = '
            f"{manifest.student.architecture!r}",
            instead,
        )


def _folder(manifest: "Manifest", place: str) -> Path | None:
    """The folder that a setting names; None where it is none, or is not known before the teacher is opened."""
    if place == TEACHER:
        place = str(getattr(manifest.teacher.options, "model", "")) if manifest.teacher is not None else ""
    if not place or Path(place).is_dir():
        return Path(place) if place else None
    name = hub_name(place)
    folder = None if name is None else cached_folder(name)
    return folder if folder is not None and (folder / "config.json").exists() else None


def start_parameters(manifest: "Manifest") -> int | None:
    """Parameters of the student that starts from a checkpoint here, about; None: not known without loading it.

    By the bytes of the weights; a fifth of the layers count as a fifth of them.
    """
    student = manifest.student
    folder = None if student is None or not student.init_from else _folder(manifest, student.init_from)
    try:
        config = {} if folder is None else json.loads((folder / "config.json").read_text(encoding="utf-8"))
        layers = int(config["num_hidden_layers"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    assert folder is not None
    assert student is not None
    size = 4 if str(config.get("dtype", config.get("torch_dtype"))) in ("float32", "None") else 2
    whole = sum(file.stat().st_size for file in folder.glob("*.safetensors")) // size
    return round(whole * len(student.layers) / layers) if student.layers else whole


def _here(place: str) -> Path:
    """The folder that a setting names; a model of the Hub is fetched where its cache lacks it. Raises ProviderError."""
    name = None if Path(place).is_dir() else hub_name(place)
    return Path(place) if name is None else model_snapshot(name)


def _problems(manifest: "Manifest", plugins: "Plugins", setting: str, place: str) -> Iterator[Problem]:
    if place == TEACHER:
        teacher = None if manifest.teacher is None else plugins.teachers.get(manifest.teacher.kind)
        if teacher is not None and teacher.model_folder is None:
            yield no_folder(teacher, setting)
    elif place and not Path(place).is_dir() and (name := hub_name(place)) is not None:
        if (problem := offline_problem(name)) is not None:
            yield problem_of(problem).within(setting)
    elif place and Path(place).is_dir():
        if setting == "student.init_from":
            for each in map(problem_of, weight_problems(Path(place))):
                in_parts = (Path(place) / "sharded").is_dir()
                fix = f"make one folder of its parts: bitnet checkpoint {place}" if in_parts else each.fix
                yield Problem(each.why.removeprefix("model: "), fix).within(setting)
        elif all(file.suffix == ".jinja" or file.name == "chat_template.json" for file in tokenizer_files(Path(place))):
            yield Problem(
                f"{setting}: {place} has no tokenizer (tokenizer.json)",
                f'save it there with save_pretrained, or set {setting} = "{TEACHER}"',
            )
    elif place:
        yield Problem(
            f"{setting}: there is no folder {place}",
            advice(place) or f'name one that is there, a name of the Hub (ORG/NAME), or "{TEACHER}"',
        )


def intermediate_terms(manifest: "Manifest") -> Any:
    """The loss's ``[loss.intermediate]`` options; None: no terms on inner layers, or a loss without them."""
    return None if manifest.loss is None else getattr(manifest.loss.options, "intermediate", None)


def intermediate_teacher(context: Context) -> Path | None:
    """The folder of the teacher whose inner layers count in the loss; None: none do."""
    return None if intermediate_terms(context.manifest) is None else context.teacher.model_folder("loss.intermediate")


def teacher_of_tokenizer(manifest: "Manifest") -> tuple[str, ...]:
    """The teacher counts in a fingerprint where the tokenizer is its own."""
    return ("teacher",) if manifest.project is not None and str(manifest.project.tokenizer) == TEACHER else ()


def teacher_of_start(manifest: "Manifest") -> tuple[str, ...]:
    """The teacher counts in a fingerprint where the student starts from it."""
    return ("teacher",) if manifest.student is not None and manifest.student.init_from == TEACHER else ()


def teacher_of_training(manifest: "Manifest") -> tuple[str, ...]:
    """It counts where the student starts from it, or its inner layers count in the loss."""
    return teacher_of_start(manifest) if intermediate_terms(manifest) is None else ("teacher",)
