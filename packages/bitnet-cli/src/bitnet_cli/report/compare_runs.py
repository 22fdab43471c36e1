"""Several runs in one page: their figures with the best marked, their curves overlaid, and what sets them apart."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import attrs

from bitnet_cli import run_folder
from bitnet_cli.report.blocks import (
    Block,
    Bullets,
    Figure,
    Heading,
    Link,
    SideBySide,
    Table,
    Text,
    Words,
    plain,
    readable,
)
from bitnet_cli.report.charts.chart_data import Line, drawable, thin
from bitnet_cli.report.charts.svg import PALETTE
from bitnet_cli.report.html import to_html
from bitnet_cli.report.number_format import bytes_text, interval, number
from bitnet_cli.report.read_run import RunRecord, read_run
from bitnet_cli.report.sections.provenance import setting_text
from bitnet_cli.report.sections.samples import question, said, student_answers, teacher_answers
from bitnet_cli.report.sections.training import chart, series
from bitnet_cli.wording.hide_secrets import printable
from bitnet_core.evaluation.bootstrap import bootstrap_interval


def flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Tables within tables as one with dotted names, below `name`."""
    if not isinstance(value, dict):
        yield name, value
        return
    for key, item in value.items():
        yield from flat(f"{name}.{key}" if name else str(key), item)


@attrs.frozen
class Compared:
    """A figure that runs are compared by."""

    label: str
    value: Callable[[RunRecord], Any]
    best: Callable[[list[float]], float] | None = None
    """`min`, `max`, or None where no value is better than another."""
    of_the_text: bool = False
    """It depends on the held-out text: between different ones there is no best."""
    of: Callable[[RunRecord], Any] = lambda run: None
    """What it is made of: between different ones there is no best."""
    sums: tuple[str, str] | None = None
    """The sums over documents that it is the ratio of, or a function of that: runs can be compared in pairs."""
    words: Callable[[Any], str] = number


def _evaluated(*path: str) -> Callable[[RunRecord], Any]:
    """An entry of the evaluation, however deep."""

    def value(run: RunRecord) -> Any:
        found: Any = run.evaluation
        for name in path:
            found = found.get(name) if isinstance(found, dict) else None
        return found

    return value


def _of_unigram(run: RunRecord) -> float | None:
    kl, unigram = run.evaluation.get("heldout_kl"), run.evaluation.get("unigram_kl")
    return kl / unigram if kl is not None and unigram else None


KL_SUMS = ("kl", "kd_positions")
FIGURES = (
    Compared("held-out KL, nats per token", _evaluated("heldout_kl"), min, True, sums=KL_SUMS),
    Compared("of the unigram's", _of_unigram, min, True, sums=KL_SUMS),
    Compared("held-out KL at A8", _evaluated("heldout_at_8_bits", "kl"), min, True),
    Compared("top-1 agreement", _evaluated("top1_agreement"), max, True),
    Compared("perplexity", _evaluated("perplexity"), min, True, sums=("nll", "scored_positions")),
    Compared("expected calibration error", _evaluated("heldout", "calibration", "ece"), min, True),
    Compared("valid JSON where asked for", _evaluated("generation", "json_validity"), max),
    Compared("memory of the weights", _evaluated("memory_bytes"), min, words=bytes_text),
    Compared("decode speed, tok/s", _evaluated("tokens_per_second"), max),
    Compared("QEI", _evaluated("qei"), max, True, of=_evaluated("qei_quality")),
    Compared("QEI_speed", _evaluated("qei_speed"), max, True, of=_evaluated("qei_quality")),
    Compared("quality in QEI", _evaluated("qei_quality")),
    Compared("runtime", _evaluated("runtime")),
    Compared("activation bits", _evaluated("activation_bits")),
    Compared("steps", lambda run: run.metrics[-1]["step"] if run.metrics else None),
    Compared("tokens seen", lambda run: run.metrics[-1].get("seen_tokens") if run.metrics else None),
    Compared("last training loss", lambda run: run.metrics[-1].get("loss") if run.metrics else None),
    Compared("training, s", lambda run: run.done["train"].seconds if "train" in run.done else None),
)


CURVES = (
    ("loss", "Training loss", "nats per token"),
    ("validation_kl", "Validation KL", "nats to the teacher"),
    ("kd", "KD part", "nats per token"),
    ("ce", "CE part", "nats per token"),
    ("grad_norm", "Gradient norm", "before clipping"),
    ("lr", "Learning rate", ""),
)


def write_comparison(folders: Sequence[Path], file: Path) -> str:
    """Write the page on the runs in `folders`, in that order; returns its first sentence."""
    runs = [attrs.evolve(read_run(folder), name=name) for folder, name in zip(folders, labels(folders), strict=True)]
    reports = [_report_link(folder, run.name, file) for folder, run in zip(folders, runs, strict=True)]
    run_folder.write_text(file, printable(to_html(comparison_blocks(runs, reports))))
    return next(plain(block.text) for block in readable(lambda: [Text(lead(runs))]) if isinstance(block, Text))


def labels(folders: Sequence[Path]) -> list[str]:
    """The folders' names, with as many parents as it takes to tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        found = ["/".join(each[-depth:]) for each in parts]
        if len(set(found)) == len(found):
            break
    return found


def _report_link(folder: Path, name: str, page: Path) -> str | Link:
    """The run's own report, seen from the page; its name where it has none."""
    report = folder / run_folder.REPORT_HTML
    if not report.is_file():
        return name
    try:
        return Link(name, quote(Path(os.path.relpath(report.resolve(), page.resolve().parent)).as_posix()))
    except ValueError:  # on another drive of Windows
        return name


def comparison_blocks(runs: Sequence[RunRecord], reports: Sequence[str | Link] = ()) -> list[Block]:
    """reports: a link to each run's own report, as the page writes it."""
    return [
        Heading(f"BitNet KDE: {len(runs)} runs", level=1),
        *readable(lambda: [Text(lead(runs), strong=True)]),
        *readable(lambda: _reports(reports)),
        *readable(lambda: _figures(runs)),
        *readable(lambda: _curves(runs)),
        *readable(lambda: _settings(runs)),
        *readable(lambda: _samples(runs)),
        *readable(lambda: _machines(runs)),
    ]


def _reports(reports: Sequence[str | Link]) -> Iterator[Block]:
    if any(isinstance(report, Link) for report in reports):
        between: list[str | Link] = [part for report in reports for part in (", ", report)]
        words: Words = ("The runs' own reports: ", *between[1:], ".")
        yield Text(words)


def lead(runs: Sequence[RunRecord]) -> str:
    """Which student is closest to its teacher, where that is known."""
    evaluated = [run for run in runs if run.evaluation.get("heldout_kl") is not None]
    if len(evaluated) < 2:
        return (
            f"{len(evaluated) or 'None'} of {len(runs)} runs {'has' if len(evaluated) == 1 else 'have'} a held-out KL."
        )
    if differing_texts(evaluated):
        return "The runs were measured on different held-out text: no KL is better than another."
    first, second, *_ = sorted(evaluated, key=lambda run: run.evaluation["heldout_kl"])
    best, next_best = first.evaluation["heldout_kl"], second.evaluation["heldout_kl"]
    if (paired := paired_interval(second, first, KL_SUMS)) is not None and paired[0] <= 0 <= paired[1]:
        return (
            f"{first.name} and {second.name} tie: held-out KL {number(best)} and {number(next_best)} nats per token; "
            f"the 95 % interval of their difference, documents drawn in pairs, holds 0 ({interval(paired)})."
        )
    if best == next_best:
        return f"{first.name} and {second.name} are equally close to the teacher: {number(best)} nats per token."
    return (
        f"{first.name} is closest to the teacher: held-out KL {number(best)} nats per token, "
        f"{best / next_best:.2f} of the {number(next_best)} of {second.name}."
    )


def differing_texts(runs: Sequence[RunRecord]) -> bool:
    """Whether the evaluations read different traces, or took different numbers of their positions."""
    read = {run.done["evaluate"].inputs.get(run_folder.TRACES) for run in runs if "evaluate" in run.done}
    counts = {
        (run.evaluation.get("split"), _evaluated("heldout", "scored_positions")(run)) for run in runs if run.evaluation
    }
    return len(read) > 1 or len(counts) > 1


def _figures(runs: Sequence[RunRecord]) -> Iterator[Block]:
    yield Heading("Figures")
    apart = differing_texts(runs)
    rows: list[tuple[str, ...]] = []
    marked: set[tuple[int, int]] = set()
    for figure in FIGURES:
        values = [figure.value(run) for run in runs]
        if all(value is None for value in values):
            continue
        if len({figure.of(run) for run, value in zip(runs, values, strict=True) if value is not None}) == 1:
            marked |= {(len(rows), 1 + column) for column in best_and_ties(figure, runs, values, apart)}
        rows.append((figure.label, *map(figure.words, values)))
    if not rows:
        yield Text("Not there yet: none of the runs has trained.")
        return
    yield Table(("figure", *(run.name for run in runs)), tuple(rows), marked=frozenset(marked))
    yield Text("The best of a row is set off, and what ties with it.")
    yield from _differences(runs, apart)
    notes = [f"{run.name}: {stage} has not finished." for run in runs for stage in run.started]
    if apart:
        notes.append("The runs read different traces: their KL, perplexity and index can't be compared.")
    if notes:
        yield Bullets(tuple(notes))


def best_of(figure: Compared, values: Sequence[Any], apart: bool) -> list[int]:
    """Which of the values are the best; none where all are the same, or nothing is known."""
    known = [value for value in values if drawable(value)]
    if figure.best is None or (figure.of_the_text and apart) or len(set(known)) < 2:
        return []
    return [place for place, value in enumerate(values) if value == figure.best(known)]


def best_and_ties(figure: Compared, runs: Sequence[RunRecord], values: Sequence[Any], apart: bool) -> list[int]:
    """The best values and those that the documents can't tell from them; none where that is every run's."""
    best = best_of(figure, values, apart)
    if not best or figure.sums is None:
        return best
    pairs = {place: paired_interval(run, runs[best[0]], figure.sums) for place, run in enumerate(runs)}
    found = [place for place, pair in pairs.items() if place in best or (pair is not None and pair[0] <= 0 <= pair[1])]
    return found if len(found) < sum(map(drawable, values)) else []


def paired_interval(run: RunRecord, other: RunRecord, sums: tuple[str, str]) -> tuple[float, float] | None:
    """95 % interval of the run's Σ/Σ less the other's: each resample draws the same documents for both.

    None where the two were not measured on the same documents, or a report is of before these were recorded.
    """
    tables = [each.evaluation.get("documents") or {} for each in (run, other)]
    (above, below), (other_above, other_below) = (tuple(map(table.get, sums)) for table in tables)
    if not above or not other_above or below != other_below or len(above) != len(other_above):
        return None
    return bootstrap_interval([a - b for a, b in zip(above, other_above, strict=True)], below)


def _differences(runs: Sequence[RunRecord], apart: bool) -> Iterator[Block]:
    """Every run's KL beside the best one's."""
    evaluated = [run for run in runs if drawable(run.evaluation.get("heldout_kl"))]
    if apart or len(evaluated) < 2:
        return
    best = min(evaluated, key=lambda run: run.evaluation["heldout_kl"])
    found = [(run, paired_interval(run, best, KL_SUMS)) for run in evaluated if run is not best]
    rows = tuple(
        (run.name, interval(pair), "tie" if pair[0] <= 0 <= pair[1] else "farther from the teacher")
        for run, pair in found
        if pair is not None
    )
    if rows:
        yield Table(("run", f"KL less that of {best.name}, nats per token: 95 %", "the run is"), rows, numeric=False)


def _curves(runs: Sequence[RunRecord]) -> Iterator[Block]:
    charts = []
    for key, title, unit in CURVES:
        lines = [
            Line(run.name, thin(points), place, dashed=place >= PALETTE, dots=key == "validation_kl")
            for place, run in enumerate(runs)
            if (points := series(run.metrics, key)) and any(value for _, value in points)
        ]
        if lines:
            charts.append(chart(title, unit, lines))
    if charts:
        yield Heading("Curves")
        yield from (Figure(f"curve-{place}", "", (each,)) for place, each in enumerate(charts))


def _settings(runs: Sequence[RunRecord]) -> Iterator[Block]:
    yield Heading("Settings that differ")
    tables = [dict(flat("", run.manifest)) for run in runs]
    keys = dict.fromkeys(key for table in tables for key in table if key != "run.name")
    rows = tuple(
        (key, *(setting_text(table.get(key)) for table in tables))
        for key in keys
        if len({setting_text(table.get(key)) for table in tables}) > 1
    )
    yield Table(("setting", *(run.name for run in runs)), rows, numeric=False) if rows else Text("None.")


def _samples(runs: Sequence[RunRecord]) -> Iterator[Block]:
    """The prompts that the first run was asked, with every student's answer and the teacher's."""
    answers = [{question(each): said(each) for each in student_answers(run)} for run in runs]
    teacher = {question(each): said(each) for run in reversed(runs) for each in teacher_answers(run)}
    asked = dict.fromkeys(prompt for each in answers for prompt in each)
    if asked:
        yield Heading("Samples")
        rows = ((prompt, *(each.get(prompt, "–") for each in (*answers, teacher))) for prompt in asked)
        yield SideBySide(("prompt", *(run.name for run in runs), "teacher"), tuple(rows))


def _machines(runs: Sequence[RunRecord]) -> Iterator[Block]:
    yield Heading("Provenance")
    facts = (
        ("commit", lambda env: (env.get("git") or {}).get("commit")),
        ("machine", lambda env: env.get("cpu")),
        ("device", lambda env: (env.get("torch") or {}).get("device")),
        ("threads", lambda env: (env.get("torch") or {}).get("threads")),
        ("python", lambda env: env.get("python")),
        ("torch", lambda env: (env.get("packages") or {}).get("torch")),
    )
    rows = [(label, *(str(value(run.environment) or "–") for run in runs)) for label, value in facts]
    yield Table(("what", *(run.name for run in runs)), tuple(rows), numeric=False)
