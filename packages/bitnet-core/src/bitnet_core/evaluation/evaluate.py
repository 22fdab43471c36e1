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
from bitnet_core.training.checkpoint import read_state

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
    quality-efficiency index. KL is in nats per position, speed in tokens per second, memory in bytes.
    """
    device = best_device()
    model = move(BitNetKDEForCausalLM.from_pretrained(checkpoint), device).eval()
    state = read_state(checkpoint)
    documents = KDTraceDataset(
        data_folder, split="heldout", max_seq_len=config.max_seq_len, tokenizer_folder=tokenizer_folder
    )

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
    baselines = ngram_baselines(data_folder, tokenizer_folder, config.max_seq_len)

    figures, figures_at_8_bits = summary(scores), summary(at_8_bits)
    report: dict[str, Any] = {
        "heldout_kl": figures["kl"],
        "untrained_kl": summary(before)["kl"],
        "unigram_kl": baselines["unigram_kl"],
        "bigram_kl": baselines["bigram_kl"],
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
            "teacher_memory_bytes": baseline["teacher"].get("memory_bytes"),
            "generation": generation,
            "teacher_answers": prompts,
        }
        report |= quality_efficiency(report)
    return report


def ngram_baselines(data_folder: Path, tokenizer_folder: Path, max_seq_len: int) -> dict[str, float]:
    """The best unigram and the best smoothed bigram on the training traces, measured on the held-out ones."""

    def positions(split: str) -> Any:
        dataset = KDTraceDataset(data_folder, split=split, max_seq_len=max_seq_len, tokenizer_folder=tokenizer_folder)
        return dataset.positions(), dataset.vocab_size

    (train, vocab_size), (heldout, _) = positions("train"), positions("heldout")
    unigram = fit_unigram(train, vocab_size)
    bigram = fit_bigram(train, unigram)
    return {
        "unigram_kl": float(np.mean(unigram_bucket_kl(unigram, heldout))),
        "bigram_kl": float(np.mean(bigram_bucket_kl(bigram, heldout))),
        "bigram_alpha": bigram.alpha,
        "train_positions": len(train.prev_token),
        "heldout_positions": len(heldout.prev_token),
    }


def intervals(scores: DocumentScores, samples: int, seed: int) -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals over documents."""

    def interval(numerator: Any, denominator: Any) -> tuple[float, float]:
        return bootstrap_interval(numerator, denominator, samples=samples, seed=seed)

    low, high = interval(scores.nll, scores.scored_positions)
    return {
        "heldout_kl": interval(scores.kl, scores.kd_positions),
        "top1_agreement": interval(scores.agreement, scores.kd_positions),
        "perplexity": (float(np.exp(low)), float(np.exp(high))),
    }
