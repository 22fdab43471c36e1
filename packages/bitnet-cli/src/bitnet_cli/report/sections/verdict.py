"""Is the student any good? In one sentence, and in the figures that a reader looks at first."""

from collections.abc import Iterator
from typing import Any

from bitnet_cli.report.blocks import Block, Card, Cards, Link, Text
from bitnet_cli.report.number_format import bytes_text, number, percent, times
from bitnet_cli.report.read_run import RunRecord
from bitnet_cli.report.sections.simplest_models import against, where
from bitnet_cli.report.sections.warnings_and_notes import warnings

NOT_EVALUATED = "not there yet: evaluate has not run"
STALE = "the evaluation is of an older training; run --stages evaluate,report"


def verdict(run: RunRecord) -> str:
    """One sentence: is the student closer to its teacher than the models that anybody could have had without it?"""
    kl, unigram, bigram = (run.evaluation.get(key) for key in ("heldout_kl", "unigram_kl", "bigram_kl"))
    if kl is None:
        return f"No verdict: {no_evaluation(run)}."
    if not unigram:
        return f"{where(run).capitalize()} KL to the teacher: {number(kl)} nats per token; there is no unigram."
    standing = _standing(run, "unigram_kl")
    stands = {
        "closer": "is closer to the teacher than",
        "tie": "ties with",
        "farther": "is no closer to the teacher than",
    }
    text = (
        f"The student {stands[standing]} the best unigram: {where(run)} KL {number(kl)} nats per token, "
        f"{kl / unigram:.2f} of the unigram's {number(unigram)}"
    )
    if bigram:
        text += f" and {kl / bigram:.2f} of the smoothed bigram's {number(bigram)}"
        if standing != "tie" and _standing(run, "bigram_kl") == "tie":
            text += ", with which it ties"
    return text + "."


def _standing(run: RunRecord, key: str) -> str:
    found = against(run.evaluation, key)
    return "farther" if found is None else found.standing


def at_a_glance(run: RunRecord) -> Iterator[Block]:
    if cards := tuple(_cards(run.evaluation)):
        yield Cards(cards)
    if run.started:
        stage, since = list(run.started.items())[-1]
        step = f" It has got to step {run.metrics[-1]['step']}." if stage == "train" and run.metrics else ""
        yield Text(f"Not finished: {stage}, begun {since[:19].replace('T', ' ')} UTC, is at work or was stopped.{step}")
    if count := len(tuple(warnings(run))):
        link = Link("1 warning" if count == 1 else f"{count} warnings", "#warnings")
        yield Text((f"There {'is' if count == 1 else 'are'} ", link, "."))


def _cards(report: dict[str, Any]) -> Iterator[Card]:
    """The verdict in figures; what was not measured has no card."""
    kl, unigram = report.get("heldout_kl"), report.get("unigram_kl")
    if kl is not None:
        against = f", {kl / unigram:.2f} of the unigram's" if unigram else ""
        yield Card("KL to the teacher", number(kl), f"nats per token{against}")
    if report.get("top1_agreement") is not None:
        yield Card("top-1 agreement", percent(report["top1_agreement"]), "with the teacher's likeliest token")
    student, teacher = report.get("perplexity"), report.get("teacher_perplexity")
    if student is not None:
        yield Card("perplexity", number(student), f"the teacher's is {number(teacher)}" if teacher else "per token")
    size, teachers_size = report.get("memory_bytes"), report.get("teacher_memory_bytes")
    if size and teachers_size:
        yield Card("smaller by", times(teachers_size / size), f"{bytes_text(size)} of {bytes_text(teachers_size)}")
    elif size:
        yield Card("weights", bytes_text(size), str(report.get("memory_source", "packed")))
    speed, teachers_speed = report.get("tokens_per_second"), report.get("teacher_tokens_per_second")
    if speed and teachers_speed:
        yield Card("speed", times(speed / teachers_speed), f"{number(speed)} against {number(teachers_speed)} tok/s")
    if report.get("qei") is not None:
        yield Card("QEI", number(report["qei"]), "quality per byte; the teacher has 1")


def no_evaluation(run: RunRecord) -> str:
    return STALE if run.stale else NOT_EVALUATED
