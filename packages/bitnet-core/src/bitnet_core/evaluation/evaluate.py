"""The whole measurement of a student, from its checkpoint, the traces and the teacher's baseline to one report.

The student is measured as it ended its training (its activation bits), and once more at 8 bits, since exports run A8.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from bitnet_core.config import EvaluateConfig
from bitnet_core.errors import CoreError
from bitnet_core.evaluation.baselines import fit_bigram, fit_unigram
from bitnet_core.evaluation.buckets import bigram_bucket_kl, unigram_bucket_kl
from bitnet_core.evaluation.generation import greedy_answers
from bitnet_core.evaluation.heldout import DocumentScores, score_documents, summary
from bitnet_core.evaluation.qei import bootstrap_interval, quality_efficiency
from bitnet_core.hardware import best_device, move, peak_memory_bytes
from bitnet_core.model.footprint import dense_bytes, packed_bytes
from bitnet_core.model.init_from import build_student
from bitnet_core.model.modeling import BitNetKDEForCausalLM
from bitnet_core.student_config import StudentConfig
from bitnet_core.traces.dataset import KDTraceDataset
from bitnet_core.traces.target_kind import is_sampled
from bitnet_core.training.checkpoint import TrainingState, load_model, read_state

OnProgress = Callable[[int, int, str], None]


def evaluate(
    *,
    checkpoint: Path,
    data_folder: Path,
    tokenizer_folder: Path,
    teacher_folder: Path | None,
    baseline: Mapping[str, Any] | None,
    student: StudentConfig,
    precision: str,
    config: EvaluateConfig,
    seed: int,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Measure `checkpoint`; returns the content of ``reports/mini_evaluation_report.json``.

    `baseline` is the teacher's greedy baseline; without one there are no samples beside it, no teacher speed, and no
    quality-efficiency index. KL is in nats per position, speed in tokens per second, memory in bytes. A KL that the
    traces can't give (no teacher distributions in them) is None, and ``kl_missing`` says why; else that is None.
    ``kl_over`` says what all KLs are over. Of sampled targets they are unbiased estimates, and the top-1 agreement is
    None, since the teacher's likeliest token isn't known.
    Raises CoreError for a damaged checkpoint, and for traces of another projection than the training's.
    """
    device = best_device()
    state = read_state(checkpoint)
    model = move(load_model(checkpoint), device).eval()
    documents = KDTraceDataset(
        data_folder, split="heldout", max_seq_len=config.max_seq_len, tokenizer_folder=tokenizer_folder
    )
    check_projection(state, documents, data_folder)

    def score(scored: BitNetKDEForCausalLM, bits: int, note: str, done: int) -> DocumentScores:
        on_progress(done, 4, note)
        scored.set_activation_bits(bits)
        return score_documents(scored, documents, config.batch_size, precision)

    at_8_bits = score(model, 8, "held-out documents at A8", 0)
    scores = score(model, state.bits, f"held-out documents at A{state.bits}", 1) if state.bits != 8 else at_8_bits
    untrained = move(build_student(student, teacher_folder, documents.vocab_size, seed=seed), device)
    before = score(untrained, 8, "the untrained student", 2)
    del untrained
    on_progress(3, 4, "unigram and bigram baselines")
    baselines, kl_missing = ngram_baselines(data_folder, tokenizer_folder, config.max_seq_len)

    sampled = is_sampled(documents.target)
    figures, figures_at_8_bits = summary(scores), summary(at_8_bits)
    report: dict[str, Any] = {
        "heldout_kl": figures["kl"],
        "untrained_kl": summary(before)["kl"],
        "unigram_kl": baselines["unigram_kl"],
        "bigram_kl": baselines["bigram_kl"],
        "kl_missing": kl_missing,
        "kl_over": (
            "the whole vocabulary, estimated without bias from the teacher's draws"
            if sampled
            else "the teacher's top candidates and one bucket for all other tokens"
        ),
        "top1_agreement": figures["top1_agreement"],
        "perplexity": figures["perplexity"],
        "teacher_perplexity": figures["teacher_perplexity"],
        "tokens_per_second": None,
        "teacher_tokens_per_second": None,
        "memory_bytes": packed_bytes(model),
        "teacher_memory_bytes": None,
        "qei": None,
        "qei_speed": None,
        "dense_memory_bytes": dense_bytes(model),
        "peak_memory_bytes": peak_memory_bytes(device),
        "activation_bits": state.bits,
        "seen_tokens": state.seen_tokens,
        "checkpoint": checkpoint.name,
        "heldout": figures,
        "heldout_at_8_bits": figures_at_8_bits,
        "baselines": baselines,
        "intervals_95": intervals(scores, config.bootstrap_samples, seed),
        "runtime": f"torch {torch.__version__} on {device.type}, {torch.get_num_threads()} threads, fake quantisation",
    }
    if baseline is not None:
        prompts = baseline["answers"][: config.max_prompts]
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
        generation = greedy_answers(model, tokenizer, prompts, config.max_new_tokens, precision, on_progress)
        report |= {
            "tokens_per_second": generation["tokens_per_second"],
            "teacher_tokens_per_second": baseline["tokens_per_second"],
            "teacher_clock": baseline.get("clock_note"),
            "teacher_memory_bytes": baseline["teacher"].get("memory_bytes"),
            "generation": generation,
            "teacher_answers": prompts,
        }
        report |= quality_efficiency(report)
    return report


def check_projection(state: TrainingState, documents: KDTraceDataset, data_folder: Path) -> None:
    """Raise CoreError where the held-out documents may have been trained on: another projection splits otherwise."""
    projection = documents.metadata.projection.get("id") if documents.metadata else None
    if state.projection is not None and projection != state.projection:
        raise CoreError(
            f"{data_folder}: these traces come from another projection ({projection}) than those that the student "
            f"was trained on ({state.projection}), so it may have seen the held-out documents; "
            "train again: bitnet run MANIFEST --from train"
        )


def ngram_baselines(
    data_folder: Path, tokenizer_folder: Path, max_seq_len: int
) -> tuple[dict[str, float | None], str | None]:
    """The best unigram and the best smoothed bigram on the training traces, measured on the held-out ones.

    And why their KL is missing, if it is.
    """

    def positions(split: str) -> Any:
        dataset = KDTraceDataset(data_folder, split=split, max_seq_len=max_seq_len, tokenizer_folder=tokenizer_folder)
        return dataset.positions(), dataset.vocab_size

    (train, vocab_size), (heldout, _) = positions("train"), positions("heldout")
    figures: dict[str, float | None] = {
        "unigram_kl": None,
        "bigram_kl": None,
        "bigram_alpha": None,
        "train_positions": len(train.prev_token),
        "heldout_positions": len(heldout.prev_token),
    }
    for split, found in (("held-out", heldout), ("training", train)):
        if not len(found.prev_token):
            reason = "collected with top_k = 0, or cut off by evaluate.max_seq_len"
            return figures, f"the {split} traces hold no teacher distribution within their positions ({reason})"
    unigram = fit_unigram(train, vocab_size)
    bigram = fit_bigram(train, unigram)
    figures |= {
        "unigram_kl": float(np.mean(unigram_bucket_kl(unigram, heldout))),
        "bigram_kl": float(np.mean(bigram_bucket_kl(bigram, heldout))),
        "bigram_alpha": bigram.alpha,
    }
    return figures, None


def intervals(scores: DocumentScores, samples: int, seed: int) -> dict[str, tuple[float, float] | None]:
    """95 % bootstrap intervals over documents; None for a figure that is None."""

    def interval(numerator: Any, denominator: Any) -> tuple[float, float] | None:
        if not denominator.sum():
            return None
        return bootstrap_interval(numerator, denominator, samples=samples, seed=seed)

    nll = interval(scores.nll, scores.scored_positions)
    return {
        "heldout_kl": interval(scores.kl, scores.kd_positions),
        "top1_agreement": interval(scores.agreement, scores.top1_positions),
        "perplexity": None if nll is None else (float(np.exp(nll[0])), float(np.exp(nll[1]))),
    }
