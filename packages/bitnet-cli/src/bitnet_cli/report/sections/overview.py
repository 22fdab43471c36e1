"""What a report says, section by section: the verdict first, then the figures behind it, then how they came about."""

import json
import tomllib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from bitnet_cli.report.blocks import (
    Block,
    Bullets,
    Card,
    Cards,
    Code,
    Figure,
    Heading,
    Table,
    Text,
    readable,
)
from bitnet_cli.report.charts.chart import Dot, Dots, drawable, wants_log
from bitnet_cli.report.read import RunRecord
from bitnet_cli.report.sections.benchmarks import benchmark_blocks
from bitnet_cli.report.sections.calibrated_start import calibrated_start_blocks
from bitnet_cli.report.sections.calibration import calibration_blocks
from bitnet_cli.report.sections.codes import codes_blocks
from bitnet_cli.report.sections.dry_run import dry_run_blocks
from bitnet_cli.report.sections.samples import sample_blocks
from bitnet_cli.report.sections.teacher_quantised import teacher_quantised_blocks
from bitnet_cli.report.sections.traces import trace_blocks
from bitnet_cli.report.sections.training import flip_step, training_blocks
from bitnet_cli.report.words import bytes_text, first_line, number, percent, stage_times, times

NOT_EVALUATED = "not there yet: evaluate has not run"
STALE = "the evaluation is of an older training; run --stages evaluate,report"


def report_blocks(run: RunRecord) -> list[Block]:
    """Every section of the report, in the order in which a reader wants them."""
    sections: tuple[Callable[[], Iterable[Block]], ...] = (
        lambda: [Text(verdict(run), strong=True)],
        lambda: _at_a_glance(run),
        lambda: _comparison(run),
        lambda: _efficiency(run),
        lambda: teacher_quantised_blocks(run),
        lambda: benchmark_blocks(run.evaluation),
        lambda: _exports(run),
        lambda: calibrated_start_blocks(run),
        lambda: training_blocks(run),
        lambda: trace_blocks(run),
        lambda: codes_blocks(run),
        lambda: calibration_blocks(run),
        lambda: sample_blocks(run),
        lambda: dry_run_blocks(run.dry_run),
        lambda: _settings(run),
        lambda: _provenance(run),
        lambda: _warnings(run),
    )
    return [
        Heading(f"BitNet KDE: {run.name}", level=1),
        *(block for section in sections for block in readable(section)),
    ]


def verdict(run: RunRecord) -> str:
    """One sentence: is the student closer to its teacher than the models that anybody could have had without it?"""
    kl, unigram, bigram = (run.evaluation.get(key) for key in ("heldout_kl", "unigram_kl", "bigram_kl"))
    if kl is None:
        return f"No verdict: {_no_evaluation(run)}."
    if not unigram:
        return f"{_where(run).capitalize()} KL to the teacher: {number(kl)} nats per token; there is no unigram."
    ratio = kl / unigram
    closer = "closer to the teacher than" if ratio < 1 else "no closer to the teacher than"
    text = (
        f"The student is {closer} the best unigram: {_where(run)} KL {number(kl)} nats per token, "
        f"{ratio:.2f} of the unigram's {number(unigram)}"
    )
    if bigram:
        text += f" and {kl / bigram:.2f} of the smoothed bigram's {number(bigram)}"
    return text + "."


def _where(run: RunRecord) -> str:
    """On which documents: "test", "validation", or, of an older report, "held-out"."""
    return str(run.evaluation.get("split", "held-out"))


def _at_a_glance(run: RunRecord) -> Iterator[Block]:
    if cards := tuple(_cards(run.evaluation)):
        yield Cards(cards)
    if run.started:
        stage, since = list(run.started.items())[-1]
        step = f" It has got to step {run.metrics[-1]['step']}." if stage == "train" and run.metrics else ""
        yield Text(f"Not finished: {stage}, begun {since[:19].replace('T', ' ')} UTC, is at work or was stopped.{step}")
    if count := len(tuple(_find_warnings(run))):
        yield Text(f"There {'is 1 warning' if count == 1 else f'are {count} warnings'}: see the end.")


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


def _no_evaluation(run: RunRecord) -> str:
    return STALE if run.stale else NOT_EVALUATED


def _comparison(run: RunRecord) -> Iterator[Block]:
    yield Heading("Student against the simplest models")
    if not run.evaluation:
        yield Text(f"Held-out figures: {_no_evaluation(run)}.")
        return
    report, unigram = run.evaluation, run.evaluation.get("unigram_kl")
    rows = []
    for label, key in (
        (f"student (A{report.get('activation_bits', '?')})", "heldout_kl"),
        ("bigram, smoothed", "bigram_kl"),
        ("unigram", "unigram_kl"),
        ("untrained student", "untrained_kl"),
    ):
        kl = report.get(key)
        ratio = f"{kl / unigram:.3f}" if kl is not None and unigram else "–"
        rows.append((label, _with_interval(report, key), ratio))
    at_8_bits = (report.get("heldout_at_8_bits") or {}).get("kl")
    if at_8_bits is not None and report.get("activation_bits") != 8:
        ratio = f"{at_8_bits / unigram:.3f}" if unigram else "–"
        rows.insert(1, ("the same student at A8, as it is exported", number(at_8_bits), ratio))
    if dots := tuple(_dots(report)):
        caption = "KL to the teacher of the student and of the simplest models; bars are 95 % intervals."
        log = wants_log((dot.value for dot in dots), ratio=4.0)
        label = "nats per token" + (", log scale" if log else "")
        yield Figure("kl", caption, (Dots(title="Distance to the teacher", x_label=label, dots=dots, log_x=log),))
    yield Table(("model", "KL to the teacher, nats per token", "of the unigram's"), tuple(rows))
    heldout = report.get("heldout") or {}
    over = report.get("kl_over", "the teacher's top candidates and one bucket for all other tokens")
    yield Text(
        f"On {number(heldout.get('documents'))} {_where(run)} documents with {number(heldout.get('kd_positions'))} "
        f"positions. KL over {over}, at temperature 1. The "
        "unigram is the mean teacher distribution of the training traces; the bigram is fitted on the same. In "
        "brackets: 95 % bootstrap intervals over documents."
    )
    yield Table(
        ("figure", "student", "teacher"),
        (
            ("top-1 agreement", _with_interval(report, "top1_agreement"), "1"),
            ("perplexity, per token", _with_interval(report, "perplexity"), number(report.get("teacher_perplexity"))),
            ("valid JSON where asked for", number((report.get("generation") or {}).get("json_validity")), "–"),
        ),
    )


def _dots(report: dict[str, Any]) -> Iterator[Dot]:
    """Only where there is something to compare the student with."""
    low, high = (report.get("intervals_95") or {}).get("heldout_kl") or (None, None)
    low, high = (each if drawable(each) else None for each in (low, high))
    found: list[Dot] = []
    if drawable(report.get("heldout_kl")):
        label = f"student (A{report.get('activation_bits', '?')})"
        found.append(Dot(label, report["heldout_kl"], low, high, strong=True))
    at_8_bits = (report.get("heldout_at_8_bits") or {}).get("kl")
    if found and drawable(at_8_bits) and report.get("activation_bits") != 8:
        found.append(Dot("the same student at A8", at_8_bits, strong=True))
    for label, key in (
        ("bigram, smoothed", "bigram_kl"),
        ("unigram", "unigram_kl"),
        ("untrained student", "untrained_kl"),
    ):
        if drawable(report.get(key)):
            found.append(Dot(label, report[key]))
    return iter(found if len(found) > 1 else ())


def _with_interval(report: dict[str, Any], key: str) -> str:
    interval = (report.get("intervals_95") or {}).get(key)
    text = number(report.get(key))
    return f"{text} ({number(interval[0])} to {number(interval[1])})" if interval else text


def _clock(baseline: dict[str, Any]) -> str:
    """By whose clock the teacher was timed, with the spread over its answers."""
    interval = baseline.get("tokens_per_second_interval_95")
    spread = ""
    if isinstance(interval, list) and len(interval) == 2:
        spread = f"; 95 %: {number(interval[0])} to {number(interval[1])}"
    return f"; timed by: {first_line(baseline['clock_note'])}{spread}" if baseline.get("clock_note") else ""


def _efficiency(run: RunRecord) -> Iterator[Block]:
    yield Heading("Quality-efficiency index")
    report = run.evaluation
    if not report:
        yield Text(f"QEI: {_no_evaluation(run)}.")
        return
    teacher = run.baseline.get("teacher") or {}
    baseline = f"baseline: {teacher.get('model', 'the teacher')}" if run.baseline else "no baseline has run"
    if teacher.get("dtype"):
        baseline += f", {teacher['dtype']} on {teacher.get('device', '?')}"
    yield Table(
        ("input", "student", "teacher", "where it comes from"),
        (
            (
                "quality" if _source(report, "student_quality") else "quality: 1 / perplexity",
                _quality(report, "student", "perplexity"),
                _quality(report, "teacher", "teacher_perplexity"),
                _sources(report, "quality") or f"the same {_where(run)} tokens",
            ),
            (
                "memory of the weights",
                bytes_text(report.get("memory_bytes")),
                bytes_text(report.get("teacher_memory_bytes")),
                f"student: {_source(report, 'student_memory_bytes') or 'packed size, computed'}; teacher: {baseline}",
            ),
            (
                "decode speed, tok/s",
                number(report.get("tokens_per_second")),
                number(report.get("teacher_tokens_per_second")),
                f"student: {report.get('runtime', 'this run')}; teacher: {baseline}{_clock(run.baseline)}",
            ),
        ),
        numeric=False,
    )
    yield Table(
        ("index", "value", "formula"),
        (
            (
                "QEI",
                number(report.get("qei")),
                "(student quality / teacher quality) / (student memory / teacher memory)",
            ),
            ("QEI_speed", number(report.get("qei_speed")), "QEI × student speed / teacher speed"),
        ),
        numeric=False,
    )
    if report.get("qei") is None:
        yield Text("An index is absent where one of its inputs was not measured.")
        missing = report.get("qei_missing") or {}
        if missing:
            yield Bullets(tuple(f"{name.replace('_', ' ')}: {reason}" for name, reason in missing.items()))
    if report.get("dense_memory_bytes"):
        dense = bytes_text(report["dense_memory_bytes"])
        yield Text(f"Unpacked, as trained (numel × element size), the student takes {dense}.")


def _exports(run: RunRecord) -> Iterator[Block]:
    done = run.done.get("export")
    if done is None:
        return
    yield Heading("Exports")
    entries = done.summary.get("exports")
    entries = entries.items() if isinstance(entries, dict) else ()
    rows = tuple(
        (f"exports/{name}", bytes_text(entry.get("bytes")), _runs_at(entry), str(entry.get("padded", "")))
        for name, entry in entries
        if isinstance(entry, dict)
    )
    yield Table(("file", "size", "activations", "padded with zeros"), rows, numeric=False)
    at_8_bits = (run.evaluation.get("heldout_at_8_bits") or {}).get("kl")
    if at_8_bits is not None:
        yield Text(f"As deployed, at A8, the student's {_where(run)} KL is {number(at_8_bits)} nats per token.")


def _runs_at(entry: dict[str, Any]) -> str:
    bits = entry.get("activation_bits")
    return "" if bits is None else "not quantised" if bits == 16 else f"A{bits}"


def _source(report: dict[str, Any], name: str) -> str:
    """Where an input of the index comes from, as the evaluation recorded it."""
    entry = (report.get("qei_inputs") or {}).get(name)
    return str(entry.get("source", "")) if isinstance(entry, dict) else ""


def _sources(report: dict[str, Any], name: str) -> str:
    """The one source of both sides, or both."""
    student, teacher = (_source(report, f"{owner}_{name}") for owner in ("student", "teacher"))
    return student if student == teacher else f"student: {student}; teacher: {teacher}"


def _quality(report: dict[str, Any], owner: str, perplexity: str) -> str:
    """As the evaluation used it; of a record without its inputs, 1 / perplexity."""
    entry = (report.get("qei_inputs") or {}).get(f"{owner}_quality")
    if isinstance(entry, dict):
        return number(entry.get("value"))
    return number(1 / report[perplexity]) if report.get(perplexity) else "–"


def _warnings(run: RunRecord) -> Iterator[Block]:
    found = tuple(_find_warnings(run))
    yield Heading("Warnings")
    yield Bullets(found) if found else Text("None.")


def _find_warnings(run: RunRecord) -> Iterator[str]:
    report = run.evaluation
    kl = report.get("heldout_kl")
    for key, label in (("unigram_kl", "the unigram"), ("untrained_kl", "the untrained student")):
        if kl is not None and report.get(key) is not None and kl >= report[key]:
            yield f"The student is no better than {label}: {number(kl)} against {number(report[key])} nats."
    if run.metrics and flip_step(run.metrics) is None and run.metrics[-1].get("bits") == 8:
        yield "Activations never flipped to 4 bits: the figures are A8's."
    if report and not run.baseline:
        yield "There is no teacher baseline, so there is no speed and no QEI to compare."
    if report and run.baseline and report.get("teacher_memory_bytes") is None:
        yield "The teacher's memory is unknown, so QEI is absent."
    if (run.environment.get("git") or {}).get("dirty"):
        yield "Tracked files differed from the commit when this run was made."
    for done in run.done.values():
        for warning in done.summary.get("warnings") or ():
            yield f"{done.stage}: {warning}"


def _provenance(run: RunRecord) -> Iterator[Block]:
    yield Heading("Provenance")
    if run.done:
        header = ("stage", "finished (UTC)", "seconds", "result")
        yield Table(header, stage_times(run.done.values()), numeric=False)
    else:
        yield Text("No stage has finished yet.")
    environment, git = run.environment, run.environment.get("git") or {}
    torch = environment.get("torch") or {}
    packages = environment.get("packages") or {}
    facts = (
        ("commit", f"{git['commit']}{', with changes' if git.get('dirty') else ''}" if git else "not in a repository"),
        ("uv.lock sha256", environment.get("uv_lock_sha256")),
        ("machine", f"{environment.get('cpu')}, {environment.get('cpu_count')} cores" if environment else None),
        ("platform", environment.get("platform")),
        ("python", environment.get("python")),
        ("device", f"{torch.get('device')}, {torch.get('threads')} threads" if torch else None),
        (
            "packages",
            ", ".join(f"{name} {packages[name]}" for name in ("torch", "transformers", "pyarrow") if name in packages),
        ),
        ("teacher", first_line((run.baseline.get("teacher") or {}).get("model"))),
    )
    rows = tuple((name, str(value)) for name, value in facts if value)
    if environment:
        yield Table(("what", "value"), rows, numeric=False)
    else:
        yield Text("environment.json: not there yet.")


def _settings(run: RunRecord) -> Iterator[Block]:
    yield Heading("Settings")
    if run.manifest_toml:
        yield Code(run.manifest_toml, summary="The resolved manifest")
    else:
        yield Text("manifest.resolved.toml is missing.")
    differing = tuple(_differing_settings(run))
    if differing:
        yield Text("These stages were done with other settings than the manifest has now:")
        yield Table(("setting", "stage", "done with", "manifest"), differing, numeric=False)


def _differing_settings(run: RunRecord) -> Iterator[tuple[str, str, str, str]]:
    try:
        manifest = tomllib.loads(run.manifest_toml)
    except ValueError:
        return
    for stage, done in run.done.items():
        for name, value in done.settings.items():
            now: Any = manifest
            for part in name.split("."):
                now = now.get(part) if isinstance(now, dict) else None
            # what a manifest leaves out is unset; a table stands for its settings, which are listed by themselves
            if now != value and not isinstance(now, dict) and stage != "storage":
                yield name, stage, _setting(value), _setting(now)


def _setting(value: Any) -> str:
    return "unset" if value is None else json.dumps(value, ensure_ascii=False)
