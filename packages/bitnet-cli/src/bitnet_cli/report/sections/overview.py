"""What a report says, section by section: the verdict first, then the figures behind it, then how they came about."""

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import quote

from bitnet_cli.report.blocks import (
    Block,
    Bullets,
    Card,
    Cards,
    Code,
    Heading,
    Link,
    Table,
    Text,
    readable,
)
from bitnet_cli.report.number_format import bytes_text, first_line, number, percent, stage_times, times
from bitnet_cli.report.read_run import RunRecord
from bitnet_cli.report.sections.benchmarks import benchmark_blocks
from bitnet_cli.report.sections.calibrated_start import calibrated_start_blocks
from bitnet_cli.report.sections.citation import cite_blocks
from bitnet_cli.report.sections.confidence import calibration_blocks
from bitnet_cli.report.sections.dry_run import dry_run_blocks
from bitnet_cli.report.sections.key_facts import fact_blocks, file_link
from bitnet_cli.report.sections.samples import sample_blocks
from bitnet_cli.report.sections.simplest_models import against, simplest_model_blocks, where
from bitnet_cli.report.sections.teacher_quantised import teacher_quantised_blocks
from bitnet_cli.report.sections.ternary_codes import codes_blocks
from bitnet_cli.report.sections.traces import trace_blocks
from bitnet_cli.report.sections.training import training_blocks
from bitnet_cli.report.sections.warnings_and_notes import notice_blocks, warnings

NOT_EVALUATED = "not there yet: evaluate has not run"
STALE = "the evaluation is of an older training; run --stages evaluate,report"


def report_blocks(run: RunRecord) -> list[Block]:
    """Every section of the report, in the order in which a reader wants them."""
    sections: tuple[Callable[[], Iterable[Block]], ...] = (
        lambda: [Text(verdict(run), strong=True)],
        lambda: fact_blocks(run),
        lambda: _at_a_glance(run),
        lambda: simplest_model_blocks(run, _no_evaluation(run)),
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
        lambda: cite_blocks(run),
        lambda: notice_blocks(run),
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


def _at_a_glance(run: RunRecord) -> Iterator[Block]:
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


def _no_evaluation(run: RunRecord) -> str:
    return STALE if run.stale else NOT_EVALUATED


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
                _sources(report, "quality") or f"the same {where(run)} tokens",
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
        (
            file_link(run, f"exports/{name}"),
            bytes_text(entry.get("bytes")),
            _runs_at(entry),
            str(entry.get("padded", "")),
        )
        for name, entry in entries
        if isinstance(entry, dict)
    )
    yield Table(("file", "size", "activations", "padded with zeros"), rows, numeric=False)
    at_8_bits = (run.evaluation.get("heldout_at_8_bits") or {}).get("kl")
    if at_8_bits is not None:
        yield Text(f"As deployed, at A8, the student's {where(run)} KL is {number(at_8_bits)} nats per token.")


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
    )
    rows = tuple((name, str(value)) for name, value in facts if value)
    if environment:
        yield Table(("what", "value"), rows, numeric=False)
    else:
        yield Text("environment.json: not there yet.")
    if run.files:
        links = [part for path in sorted(run.files) for part in (", ", Link(path, quote(path)))]
        yield Text(("Files of this run: ", *links[1:], "."))


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
    for stage, done in run.done.items():
        for name, value in done.settings.items():
            now: Any = run.manifest
            for part in name.split("."):
                now = now.get(part) if isinstance(now, dict) else None
            # what a manifest leaves out is unset; a table stands for its settings, which are listed by themselves
            if now != value and not isinstance(now, dict) and stage != "storage":
                yield name, stage, _setting(value), _setting(now)


def _setting(value: Any) -> str:
    return "unset" if value is None else json.dumps(value, ensure_ascii=False)
