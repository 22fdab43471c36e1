"""The student's answers beside the teacher's."""

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

from bitnet_cli.report.blocks import Block, Heading, SideBySide, Text
from bitnet_cli.report.read_run import RunRecord


def sample_blocks(run: RunRecord) -> Iterator[Block]:
    yield Heading("Samples")
    students, teachers = student_answers(run), teacher_answers(run)
    if not students and not teachers:
        yield Text("Samples: not there yet: they need the baseline and evaluate stages.")
        return
    yield Text("Greedy answers to the evaluation prompts, student beside teacher.")
    rows = []
    for student, teacher in zip_longest(students, teachers, fillvalue=None):
        asked = student or teacher or {}
        rows.append((question(asked), said(student), said(teacher)))
    yield SideBySide(("prompt", "student", "teacher"), tuple(rows))


def student_answers(run: RunRecord) -> list[dict[str, Any]]:
    return _records((run.evaluation.get("generation") or {}).get("answers"))


def teacher_answers(run: RunRecord) -> list[dict[str, Any]]:
    return _records(run.evaluation.get("teacher_answers") or run.baseline.get("answers"))


def _records(found: Any) -> list[dict[str, Any]]:
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def question(answer: dict[str, Any]) -> str:
    messages = answer.get("messages") or []
    return str(messages[-1].get("content", "")) if messages else str(answer.get("prompt", answer.get("id", "")))


def said(answer: dict[str, Any] | None) -> str:
    return "–" if answer is None else str(answer.get("text", "")).strip() or "(nothing)"
