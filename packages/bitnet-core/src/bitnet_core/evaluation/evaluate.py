"""The whole measurement of a student, from its checkpoint, the traces and the teacher's baseline to one report.

The student is measured in torch as it ended its training (its activation bits), and once more at 8 bits, since exports
run A8. Answers, speed, and what the benchmarks score come from the runtime that `EvaluateConfig.runtime` names.
"""

import shutil
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from bitnet_core.benchmarks.contract import Benchmark, DocumentScores, TeacherAccess
from bitnet_core.benchmarks.heldout_and_agreement import agreement, agreement_scores, heldout, heldout_scores
from bitnet_core.benchmarks.json_validity import parses
from bitnet_core.config.evaluate import EvaluateConfig
from bitnet_core.config.student import StudentConfig
from bitnet_core.errors import CoreError
from bitnet_core.evaluation.benchmark_scores import (
    HeldoutIn,
    StudentSubject,
    measure,
    run_benchmarks,
    teacher_subject,
    used,
)
from bitnet_core.evaluation.bootstrap import bootstrap_interval
from bitnet_core.evaluation.heldout import of_teacher, score_documents, score_in_runtime, summary
from bitnet_core.evaluation.ngram_baselines import ngram_baselines
from bitnet_core.evaluation.qei import qei_interval, quality_efficiency
from bitnet_core.hardware import best_device, move, peak_memory_bytes
from bitnet_core.model.find_layers_and_head import set_activation_bits
from bitnet_core.model.inference_copy import snapped
from bitnet_core.model.read_checkpoint import TrainingState, load_model, read_state
from bitnet_core.model.start_student import start_student
from bitnet_core.runtime.contract import Runtime, Sampling, answer
from bitnet_core.runtime.open import RUNTIMES
from bitnet_core.ternary.model_bytes import dense_bytes, packed_bytes
from bitnet_core.traces.dataset import KDTraceDataset
from bitnet_core.traces.splits import measured_split
from bitnet_core.traces.target_kinds import is_sampled

OnProgress = Callable[[int, int, str], None]


@attrs.frozen(kw_only=True, eq=False)
class Evaluation:
    """What is measured, and against what."""

    checkpoint: Path
    data_folder: Path
    """KD traces."""
    tokenizer_folder: Path
    """The student's tokenizer."""
    teacher_folder: Path | None
    """The weights that the student started from; None: random ones."""
    baseline: Mapping[str, Any] | None
    """The teacher's greedy baseline; without one there are no samples beside it, no teacher speed, and no
    quality-efficiency index."""
    student: StudentConfig
    precision: str
    """That of the training."""
    config: EvaluateConfig
    seed: int
    benchmarks: Mapping[str, Benchmark] | None = None
    """Those of `EvaluateConfig.benchmarks`, loaded; None: the held-out ones."""
    teacher: TeacherAccess | None = None
    """Asked by benchmarks that need more of it than its traces."""
    run: Path | None = None
    """The run folder: an export in it is used, where the runtime needs one."""


HELDOUT: Mapping[str, Benchmark] = {"heldout": heldout, "agreement": agreement}
"""What is scored where nothing else is asked for."""

UNTRAINED_DOCUMENTS = 64
"""Held-out documents, the first ones, that the student is scored on as it was before its training."""


@attrs.frozen(kw_only=True, eq=False)
class HeldOut:
    """What the held-out documents say of the checkpoint in torch."""

    documents: KDTraceDataset
    scores: DocumentScores
    where: str
    """What `scores` were measured in."""


def evaluate(job: Evaluation, on_progress: OnProgress) -> dict[str, Any]:
    """Measure `job.checkpoint`; returns the content of ``reports/mini_evaluation_report.json``.

    KL is in nats per position, speed in tokens per second, memory in bytes. A KL that the traces can't give (no teacher
    distributions in them) is None, and ``kl_missing`` says why; else that is None. ``kl_over`` says what all KLs are
    over, ``split`` which documents: "test" where the traces have such, else "validation", by which the training chose.
    Of sampled targets they are unbiased estimates, and the top-1 agreement is None, since the teacher's likeliest
    token isn't known. ``differences_95`` are paired intervals, ``documents`` the sums that they are made of.
    Raises CoreError for a damaged checkpoint, for traces of another projection than the training's, for a runtime that
    can't run this student, and what a benchmark raises.
    """
    state = read_state(job.checkpoint)
    held_out, report = held_out_figures(job, state, on_progress)
    with deployed(job.config.runtime, job.checkpoint, job.run, state.bits, job.precision) as (runtime, file):
        report["runtime"] = runtime.description
        if file is not None:
            report |= {"memory_bytes": file.stat().st_size, "memory_source": f"{file.name}, the file that was run"}
        measured = cache(lambda: held_out_in_runtime(job, held_out, runtime, on_progress))
        report["benchmarks"] = benchmark_figures(job, runtime, measured, on_progress)
        report |= generation_figures(job, runtime, on_progress)
        report |= quality_efficiency(report, job.config.qei_quality)
        if report["qei"] is not None and job.config.qei_quality == "perplexity":
            scores = measured().scores if "heldout" in report["benchmarks"] else held_out.scores
            report["intervals_95"]["qei"] = qei_interval(
                scores.nll,
                scores.teacher_nll,
                scores.scored_positions,
                report["memory_bytes"] / report["teacher_memory_bytes"],
                samples=job.config.bootstrap_samples,
                seed=job.seed,
            )
    return report


def held_out_figures(job: Evaluation, state: TrainingState, on_progress: OnProgress) -> tuple[HeldOut, dict[str, Any]]:
    """The student in torch, as trained and at 8 bits, untrained, and n-grams; None for what the runtime is to say."""
    device, config = best_device(), job.config
    trained = load_model(job.checkpoint)
    dense = dense_bytes(trained)
    model = move(snapped(trained), device)  # the values that its exports hold
    del trained
    split = measured_split(job.data_folder)
    documents = KDTraceDataset(
        job.data_folder, split=split, max_seq_len=config.max_seq_len, tokenizer_folder=job.tokenizer_folder
    )
    check_projection(state, documents, job.data_folder)

    def score(student: PreTrainedModel, bits: int) -> DocumentScores:
        on_progress(int(bits != 8), 4, f"held-out documents at A{bits}")
        set_activation_bits(student, bits)
        return score_documents(student, documents, config.batch_size, job.precision)

    at_8_bits = score(model, 8)
    scores = score(model, state.bits) if state.bits != 8 else at_8_bits
    packed = packed_bytes(model)
    del model
    on_progress(2, 4, "the untrained student")
    before = untrained_scores(job, documents)
    on_progress(3, 4, "unigram and bigram baselines")
    baselines = ngram_baselines(job.data_folder, job.tokenizer_folder, config.max_seq_len, split)
    figures, others = summary(scores), {**baselines.document_kl, "untrained": before.kl}
    where = f"torch {torch.__version__} on {device.type}, A{state.bits}, fake quantisation"
    return HeldOut(documents=documents, scores=scores, where=where), {
        "split": "test" if split == "test" else "validation",
        "heldout_kl": figures["kl"],
        "untrained_kl": summary(before)["kl"],
        "untrained_documents": len(before.kl),
        **{name: baselines.figures[name] for name in ("unigram_kl", "bigram_kl")},
        "kl_missing": baselines.kl_missing,
        "kl_over": _kl_over(documents),
        **{name: figures[name] for name in ("top1_agreement", "perplexity", "teacher_perplexity")},
        "tokens_per_second": None,
        "teacher_tokens_per_second": None,
        "memory_bytes": packed,
        "memory_source": "the weights of its packed export, which were scored",
        "teacher_memory_bytes": None,
        "qei": None,
        "qei_speed": None,
        "dense_memory_bytes": dense,
        "peak_memory_bytes": peak_memory_bytes(device),
        "activation_bits": state.bits,
        "seen_tokens": state.seen_tokens,
        "checkpoint": job.checkpoint.name,
        "heldout": figures,
        "heldout_at_8_bits": summary(at_8_bits),
        "heldout_runtime": where,
        "baselines": baselines.figures,
        "intervals_95": intervals(scores, config.bootstrap_samples, job.seed),
        "differences_95": differences(scores, others, config.bootstrap_samples, job.seed),
        "documents": document_sums(scores, others),
    }


def untrained_scores(job: Evaluation, documents: KDTraceDataset) -> DocumentScores:
    """The student as it started, at 8 bits, on `UNTRAINED_DOCUMENTS`."""
    student = start_student(job.student, job.teacher_folder, documents.vocab_size, seed=job.seed)
    student = move(student, best_device())
    set_activation_bits(student, 8)
    return score_documents(student, documents, job.config.batch_size, job.precision, UNTRAINED_DOCUMENTS)


def _kl_over(documents: KDTraceDataset) -> str:
    if is_sampled(documents.target):
        return "the whole vocabulary, estimated without bias from the teacher's draws"
    return "the teacher's top candidates and one bucket for all other tokens"


def held_out_in_runtime(job: Evaluation, held_out: HeldOut, runtime: Runtime, on_progress: OnProgress) -> HeldoutIn:
    """The held-out documents where the student is deployed; in torch where the runtime can't score them."""
    found = None
    if job.config.runtime != "torch":
        on_progress(0, 1, f"held-out positions in {job.config.runtime}")
        found = score_in_runtime(runtime, held_out.documents, job.config.runtime_positions)
    if found is None:
        return HeldoutIn(held_out.scores, held_out.where)
    return HeldoutIn(found, f"{runtime.description}, on {int(found.scored_positions.sum()):,} positions")


def benchmark_figures(
    job: Evaluation, runtime: Runtime, measured: Callable[[], HeldoutIn], on_progress: OnProgress
) -> dict[str, Any]:
    """Benchmark → its scores of student and teacher; `measured` scores the held-out documents, once."""
    with teacher_subject(job.teacher, lambda: of_teacher(measured().scores)) as its_teacher:
        return run_benchmarks(
            HELDOUT if job.benchmarks is None else job.benchmarks,
            (StudentSubject(job.checkpoint.name, runtime, measured, its_teacher.teacher_runtime), its_teacher),
            samples=job.config.bootstrap_samples,
            seed=job.seed,
            on_progress=on_progress,
            ran_in=used,
        )


@contextmanager
def deployed(
    runtime: str, checkpoint: Path, run: Path | None, bits: int, precision: str
) -> Iterator[tuple[Runtime, Path | None]]:
    """The student in `runtime`, and the file that it runs there (None: the checkpoint itself).

    A file that is written for this alone lies in ``.evaluation`` of the run folder, and is gone afterwards.
    """
    kind = RUNTIMES[runtime]
    folder = checkpoint.parent if run is None else run
    work = folder / ".evaluation"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        place = kind.prepare(checkpoint, folder / "exports", work)
        with kind.open(place, bits, precision) as opened:
            yield opened, place if place.is_file() else None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def check_projection(state: TrainingState, documents: KDTraceDataset, data_folder: Path) -> None:
    """Raise CoreError where the held-out documents may have been trained on: another projection splits otherwise."""
    projection = documents.metadata.projection.get("id") if documents.metadata else None
    if state.projection is not None and projection != state.projection:
        raise CoreError(
            f"{data_folder}: these traces come from another projection ({projection}) than those that the "
            f"student was trained on ({state.projection}), so it may have seen the held-out documents",
            "train again: bitnet run MANIFEST --from train",
        )


def intervals(scores: DocumentScores, samples: int, seed: int) -> dict[str, list[float] | None]:
    """95 % bootstrap intervals over documents; None for a figure that is None."""
    found = heldout_scores(scores) | agreement_scores(scores)
    names = {"heldout_kl": "kl", "top1_agreement": "top1", "perplexity": "perplexity"}
    return {name: measure(found[score], samples, seed)["interval_95"] for name, score in names.items()}


def document_sums(scores: DocumentScores, others: Mapping[str, NDArray[np.float64]]) -> dict[str, list[float]]:
    """Sums over each measured document, by which a report compares runs in pairs: nats, and positions.

    others: of other models, Σ KL over the same documents' KD positions.
    """
    kept = {"kl": scores.kl, "kd_positions": scores.kd_positions, "nll": scores.nll}
    kept |= {"scored_positions": scores.scored_positions} | {f"{name}_kl": sums for name, sums in others.items()}
    return {name: [round(each, 6) for each in sums.tolist()] for name, sums in kept.items()}


def differences(
    scores: DocumentScores, others: Mapping[str, NDArray[np.float64]], samples: int, seed: int
) -> dict[str, list[float]]:
    """Model → 95 % interval of the student's KL less that model's, documents drawn in pairs; 0 in it: a tie.

    A model that was scored on the first documents alone is compared on these.
    """
    drawn = {"samples": samples, "seed": seed}
    return {
        f"{name}_kl": list(bootstrap_interval(scores.kl[: len(kl_D)] - kl_D, positions_D, **drawn))
        for name, kl_D in others.items()
        if (positions_D := scores.kd_positions[: len(kl_D)]).sum()
    }


def greedy_answers(
    runtime: Runtime,
    prompts: Sequence[Mapping[str, Any]],
    max_new_tokens: int,
    on_progress: Callable[[int, int, str], None],
) -> dict[str, Any]:
    """Answer each prompt (a record with ``id``, ``messages`` and maybe ``format``) alone, one token after the other.

    Returns ``answers``, the decode speed in tokens per second (all tokens over all seconds, reading the prompt
    included, and the median and spread over prompts), and ``json_validity``. The last prompt is answered once more
    before the clock starts: the last, since a runtime may keep what it has read.
    """
    sampling = Sampling(max_new_tokens=max_new_tokens)
    answer(runtime, prompts[-1]["messages"], sampling)
    answers: list[dict[str, Any]] = []
    for number, prompt in enumerate(prompts, 1):
        said = answer(runtime, prompt["messages"], sampling)
        answers.append(
            {
                "id": prompt["id"],
                "messages": list(prompt["messages"]),
                "format": prompt.get("format"),
                "text": said.text,
                "tokens": said.tokens,
                "seconds": said.seconds,
            }
        )
        on_progress(number, len(prompts), f"{said.tokens / said.seconds:.1f} tok/s")
    return {"answers": answers, **decode_speed(answers), "json_validity": json_validity(answers)}


def decode_speed(answers: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Tokens per second over all answers, and the median, least and greatest over single answers."""
    rates = [answer["tokens"] / answer["seconds"] for answer in answers]
    return {
        "tokens_per_second": sum(a["tokens"] for a in answers) / sum(a["seconds"] for a in answers),
        "tokens_per_second_median": statistics.median(rates),
        "tokens_per_second_min": min(rates),
        "tokens_per_second_max": max(rates),
    }


def json_validity(answers: Sequence[Mapping[str, Any]]) -> float | None:
    """The share of answers to JSON prompts that are JSON (see `parse_answer`); None without such prompts."""
    asked = [answer["text"] for answer in answers if answer["format"] == "json"]
    return sum(map(parses, asked)) / len(asked) if asked else None


def generation_figures(job: Evaluation, runtime: Runtime, on_progress: OnProgress) -> dict[str, Any]:
    """Answers and speed beside the baseline's; nothing without one."""
    if job.baseline is None:
        return {}
    prompts = job.baseline["answers"][: job.config.max_prompts]
    generation = greedy_answers(runtime, prompts, job.config.max_new_tokens, on_progress)
    return {
        "tokens_per_second": generation["tokens_per_second"],
        "teacher_tokens_per_second": job.baseline["tokens_per_second"],
        "teacher_clock": job.baseline.get("clock_note"),
        "teacher_memory_bytes": job.baseline["teacher"].get("memory_bytes"),
        "generation": generation,
        "teacher_answers": prompts,
    }
