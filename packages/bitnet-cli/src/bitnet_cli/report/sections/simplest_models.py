"""The student against the models that anybody could have had without it, and against itself before training.

A difference whose 95 % interval holds 0 is a tie. The interval is of a paired bootstrap: each resample draws the same
documents for both. A report of before that was recorded has the student's own interval: a model within it is a tie.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import attrs

from bitnet_cli.report.blocks import Block, Figure, Heading, Table, Text
from bitnet_cli.report.charts.axes import wants_log
from bitnet_cli.report.charts.chart_data import Dot, Dots, drawable
from bitnet_cli.report.number_format import interval, number
from bitnet_cli.report.read_run import RunRecord

Standing = Literal["closer", "tie", "farther"]
MODELS = (("bigram, smoothed", "bigram_kl"), ("unigram", "unigram_kl"), ("untrained student", "untrained_kl"))
"""As tables name them, and their key in the evaluation's report."""


@attrs.frozen
class Against:
    """How the student's KL to the teacher stands to another model's."""

    standing: Standing
    difference: tuple[float, float] | None
    """The 95 % interval of the student's less the other's, nats per token, documents drawn in pairs."""

    def __str__(self) -> str:
        return (
            self.standing
            if self.difference is None
            else "{} ({:.3g} to {:.3g})".format(self.standing, *self.difference)
        )


def against(report: Mapping[str, Any], key: str) -> Against | None:
    """None where one of the two KLs isn't known."""
    kl, other = report.get("heldout_kl"), report.get(key)
    if not drawable(kl) or not drawable(other):
        return None
    paired = ends((report.get("differences_95") or {}).get(key))
    if paired is not None:
        tie = paired[0] <= 0 <= paired[1]
    else:
        own = ends((report.get("intervals_95") or {}).get("heldout_kl"))
        tie = own is not None and own[0] <= kl <= own[1] and own[0] <= other <= own[1]
    return Against("tie" if tie else "closer" if kl < other else "farther", paired)


def ends(found: Any) -> tuple[float, float] | None:
    """Of an interval as a report has it; None for anything else."""
    if not isinstance(found, list | tuple) or len(found) != 2 or not all(map(drawable, found)):
        return None
    return found[0], found[1]


def where(run: RunRecord) -> str:
    """On which documents: "test", "validation", or, of an older report, "held-out"."""
    return str(run.evaluation.get("split", "held-out"))


def simplest_model_blocks(run: RunRecord, absent: str) -> Iterator[Block]:
    """absent: why there is no evaluation, if there is none."""
    yield Heading("Student against the simplest models")
    if not run.evaluation:
        yield Text(f"Held-out figures: {absent}.")
        return
    report = run.evaluation
    if dots := _dots(report):
        caption = "KL to the teacher of the student and of the simplest models; bars are 95 % intervals."
        log = wants_log((dot.value for dot in dots), ratio=4.0)
        label = "nats per token" + (", log scale" if log else "")
        yield Figure("kl", caption, (Dots(title="Distance to the teacher", x_label=label, dots=dots, log_x=log),))
    yield _kl_table(report)
    heldout = report.get("heldout") or {}
    over = report.get("kl_over", "the teacher's top candidates and one bucket for all other tokens")
    paired = any(against(report, key) and (report.get("differences_95") or {}).get(key) for _, key in MODELS)
    yield Text(
        f"On {number(heldout.get('documents'))} {where(run)} documents with {number(heldout.get('kd_positions'))} "
        f"positions. KL over {over}, at temperature 1. The "
        "unigram is the mean teacher distribution of the training traces; the bigram is fitted on the same. In "
        "brackets: 95 % bootstrap intervals over documents"
        + (
            ", in the last column of the student's KL less the model's, both on the same draws of documents. "
            "An interval that holds 0 is a tie."
            if paired
            else ". A model within the student's interval is a tie."
        )
    )
    yield Table(
        ("figure", "student", "teacher"),
        (
            ("top-1 agreement", with_interval(report, "top1_agreement"), "1"),
            ("perplexity, per token", with_interval(report, "perplexity"), number(report.get("teacher_perplexity"))),
            ("valid JSON where asked for", number((report.get("generation") or {}).get("json_validity")), "–"),
        ),
    )


def _kl_table(report: Mapping[str, Any]) -> Table:
    unigram = report.get("unigram_kl")

    def of_unigram(kl: Any) -> str:
        return f"{kl / unigram:.3f}" if kl is not None and unigram else "–"

    rows = [(_student(report), with_interval(report, "heldout_kl"), of_unigram(report.get("heldout_kl")), "")]
    at_8_bits = _exported(report)
    if at_8_bits is not None:
        label = "the same student at A8, as it is exported"
        rows.append((label, number(at_8_bits), of_unigram(at_8_bits), ""))
    for label, key in MODELS:
        standing, documents = against(report, key), report.get("untrained_documents")
        if key == "untrained_kl" and documents and documents < (report.get("heldout") or {}).get("documents", 0):
            label += f", on the first {documents} documents"
        rows.append((label, number(report.get(key)), of_unigram(report.get(key)), str(standing or "–")))
    header = ("model", "KL to the teacher, nats per token", "of the unigram's", "the student is")
    return Table(header, tuple(rows))


def _student(report: Mapping[str, Any]) -> str:
    return f"student (A{report.get('activation_bits', '?')})"


def _exported(report: Mapping[str, Any]) -> Any:
    """The KL at 8-bit activations, where the student ended at others."""
    at_8_bits = (report.get("heldout_at_8_bits") or {}).get("kl")
    return at_8_bits if report.get("activation_bits") != 8 else None


def _dots(report: Mapping[str, Any]) -> tuple[Dot, ...]:
    """Only where there is something to compare the student with."""
    low, high = ends((report.get("intervals_95") or {}).get("heldout_kl")) or (None, None)
    found: list[Dot] = []
    if drawable(report.get("heldout_kl")):
        found.append(Dot(_student(report), report["heldout_kl"], low, high, strong=True))
    if found and drawable(at_8_bits := _exported(report)):
        found.append(Dot("the same student at A8", at_8_bits, strong=True))
    found += [Dot(label, report[key]) for label, key in MODELS if drawable(report.get(key))]
    return tuple(found) if len(found) > 1 else ()


def with_interval(report: Mapping[str, Any], key: str) -> str:
    found = (report.get("intervals_95") or {}).get(key)
    text = number(report.get(key))
    return f"{text} ({interval(found)})" if found else text
