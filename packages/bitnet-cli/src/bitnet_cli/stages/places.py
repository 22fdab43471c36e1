"""Where the student's tokenizer and starting weights lie, as the manifest says: a folder, or the teacher's."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnet_cli import run_folder
from bitnet_cli.manifest.stage_facts import CALIBRATE
from bitnet_cli.stages.stage import Context
from bitnet_cli.stages.teacher import no_folder
from bitnet_core.config import calibration
from bitnet_core.config.student import CALIBRATED, LEAST_SQUARES

if TYPE_CHECKING:
    from bitnet_cli.manifest import Manifest
    from bitnet_cli.plugins.catalog import Plugins

TEACHER = "teacher"
"""The word that stands for the teacher's own folder."""


def tokenizer_folder(context: Context) -> Path:
    """The student's tokenizer. Raises UserError where the teacher has none to lend."""
    assert context.manifest.project is not None
    tokenizer = context.manifest.project.tokenizer
    return context.teacher.model_folder("project.tokenizer") if str(tokenizer) == TEACHER else Path(tokenizer)


def starting_weights(context: Context) -> Path | None:
    """The folder that the student starts from; None: random weights."""
    assert context.manifest.student is not None
    start = context.manifest.student.init_from
    if not start:
        return None
    return context.teacher.model_folder("student.init_from") if start == TEACHER else Path(start)


def why_not_calibrated(manifest: "Manifest") -> str | None:
    """Why the student doesn't start calibrated; None: it does."""
    student = manifest.student
    if student is None:
        return "there is no [student]"
    if student.start is None and CALIBRATE.name not in manifest.run.stages:
        return f"run.stages leaves {CALIBRATE.name} out"
    return calibration.why_not_calibrated(
        student, Path(student.init_from) if student.init_from not in ("", TEACHER) else None
    )


def calibrated_start(context: Context) -> Path | None:
    """The checkpoint that the stage calibrate has made, where the student starts from it."""
    return None if why_not_calibrated(context.manifest) else context.folder / run_folder.CALIBRATED_FOLDER


def tokenizer_problems(manifest: "Manifest", plugins: "Plugins") -> Iterator[str]:
    """Why there is no tokenizer for the student, with the fix."""
    if manifest.project is not None:
        yield from _problems(manifest, plugins, "project.tokenizer", str(manifest.project.tokenizer))


def student_problems(manifest: "Manifest", plugins: "Plugins") -> Iterator[str]:
    """Why there is no tokenizer for the student, or nothing that it can start from, each with its fix."""
    yield from tokenizer_problems(manifest, plugins)
    if manifest.student is not None:
        yield from _problems(manifest, plugins, "student.init_from", str(manifest.student.init_from or ""))
        why = why_not_calibrated(manifest)
        if manifest.student.start == CALIBRATED and why is not None:
            yield f'student.start = "{CALIBRATED}": {why}  → set student.start = "{LEAST_SQUARES}"'


def _problems(manifest: "Manifest", plugins: "Plugins", setting: str, place: str) -> Iterator[str]:
    if place == TEACHER:
        teacher = None if manifest.teacher is None else plugins.teachers.get(manifest.teacher.kind)
        if teacher is not None and teacher.model_folder is None:
            yield no_folder(teacher, setting)
    elif place and not Path(place).is_dir():
        yield f'{setting}: there is no folder {place}  → name one that is there, or "{TEACHER}"'


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
    """It counts where the student starts from it, or is held to its inner layers."""
    return teacher_of_start(manifest) if intermediate_terms(manifest) is None else ("teacher",)
