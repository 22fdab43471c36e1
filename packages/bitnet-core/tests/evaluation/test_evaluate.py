import json
import math
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch

from bitnet_core.config.evaluate import EvaluateConfig
from bitnet_core.config.loss import TopKOtherConfig
from bitnet_core.config.student import StudentConfig
from bitnet_core.config.train import TrainConfig
from bitnet_core.errors import CoreError
from bitnet_core.evaluation.evaluate import Evaluation, evaluate, json_validity
from bitnet_core.evaluation.heldout import BINS, bin_sums, calibration, mean_heldout_kl, score_documents, summary
from bitnet_core.losses.chunked import load_loss
from bitnet_core.model.choose_checkpoint import latest_checkpoint
from bitnet_core.model.init_from import build_student
from bitnet_core.traces.dataset import KDTraceDataset
from bitnet_core.training.loop import train
from bitnet_core.training.setup import Job
from training_process import quiet

BASELINE = {
    "answers": [
        {"id": "a", "messages": [{"role": "user", "content": "w3 w4"}], "format": None, "text": "w5 w6"},
        {"id": "b", "messages": [{"role": "user", "content": "w7"}], "format": "json", "text": "{}"},
    ],
    "tokens_per_second": 20.0,
    "teacher": {"memory_bytes": 10_000_000},
}


@pytest.fixture(scope="module")
def report(traces: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("run")
    student = StudentConfig(
        init_from="", hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    train(Job(
        data_folder=traces.data, tokenizer_folder=traces.tokenizer, teacher_folder=None, student=student,
        loss=load_loss(TopKOtherConfig()),
        train=TrainConfig(steps=60, batch_size=4, learning_rate=5e-3, precision="fp32"), seed=3,
        checkpoint_folder=folder / "checkpoints", metrics_file=folder / "metrics.jsonl", fingerprint="",
    ), quiet)  # fmt: skip
    return measure(folder / "checkpoints", traces, student)


def measure(checkpoints: Path, traces: Any, student: StudentConfig) -> dict[str, Any]:
    return evaluate(Evaluation(
        checkpoint=latest_checkpoint(checkpoints), data_folder=traces.data,
        tokenizer_folder=traces.tokenizer, teacher_folder=None, baseline=BASELINE, student=student, precision="fp32",
        config=EvaluateConfig(max_new_tokens=5, bootstrap_samples=200), seed=3,
    ), quiet)  # fmt: skip


def train_one_step(folder: Path, traces: Any, student: StudentConfig) -> dict[str, Any]:
    return train(Job(
        data_folder=traces.data, tokenizer_folder=traces.tokenizer, teacher_folder=None, student=student,
        loss=load_loss(TopKOtherConfig()), train=TrainConfig(steps=1, batch_size=4, precision="fp32"), seed=3,
        checkpoint_folder=folder, metrics_file=folder / "metrics.jsonl", fingerprint="",
    ), quiet)  # fmt: skip


def test_top_level_figures(report: dict[str, Any]) -> None:
    for name in (
        "heldout_kl", "untrained_kl", "unigram_kl", "bigram_kl", "top1_agreement", "perplexity", "teacher_perplexity",
        "tokens_per_second", "teacher_tokens_per_second", "memory_bytes", "teacher_memory_bytes", "qei", "qei_speed",
    ):  # fmt: skip
        assert math.isfinite(report[name]), name


def test_the_student_beats_what_it_should(report: dict[str, Any]) -> None:
    assert report["heldout_kl"] < 0.5 * report["unigram_kl"] < 0.6 * report["untrained_kl"]
    assert report["top1_agreement"] > 0.7
    assert report["activation_bits"] == 4


def test_the_teachers_perplexity_is_its_own(report: dict[str, Any]) -> None:
    assert report["teacher_perplexity"] == pytest.approx(1 / 0.7, rel=1e-5)
    assert report["perplexity"] > report["teacher_perplexity"]


def test_qei_follows_from_its_inputs(report: dict[str, Any]) -> None:
    quality = report["teacher_perplexity"] / report["perplexity"]
    memory = report["memory_bytes"] / 10_000_000
    assert report["qei"] == pytest.approx(quality / memory)
    assert report["qei_speed"] == pytest.approx(report["qei"] * report["tokens_per_second"] / 20.0)


def test_intervals_hold_the_figures(report: dict[str, Any]) -> None:
    for name in ("heldout_kl", "top1_agreement", "perplexity"):
        low, high = report["intervals_95"][name]
        assert low <= report[name] <= high


def test_differences_are_paired_over_the_documents(report: dict[str, Any]) -> None:
    """Written out: the same draws of documents for both models, whose KLs then differ by so much."""
    sums = {name: np.array(values) for name, values in report["documents"].items()}
    count = len(sums["kl"])
    assert count == report["heldout"]["documents"]
    for name in ("unigram_kl", "bigram_kl", "untrained_kl"):
        assert sums[name].sum() / sums["kd_positions"].sum() == pytest.approx(report[name], rel=1e-5)
        generator, found = np.random.default_rng(3), []
        for _ in range(200):
            drawn = generator.integers(0, count, count)
            kl, other = sums["kl"][drawn].sum(), sums[name][drawn].sum()
            found.append((kl - other) / sums["kd_positions"][drawn].sum())
        assert report["differences_95"][name] == pytest.approx(np.percentile(found, [2.5, 97.5]), abs=1e-5)
    assert report["documents"].keys() == {
        "kl", "kd_positions", "nll", "scored_positions", "unigram_kl", "bigram_kl", "untrained_kl",
    }  # fmt: skip


def test_answers(report: dict[str, Any]) -> None:
    assert [answer["id"] for answer in report["generation"]["answers"]] == ["a", "b"]
    assert all(0 < answer["tokens"] <= 5 for answer in report["generation"]["answers"])
    assert report["generation"]["json_validity"] == 0.0


def test_scores_against_logits_written_out(traces: Any, student: StudentConfig) -> None:
    """The sums of one document, computed with numpy in float64 from the model's logits."""
    model = build_student(attrs.evolve(student, activation_bits=16), None, 32, seed=1).eval()
    documents = KDTraceDataset(traces.data, "heldout", tokenizer_folder=traces.tokenizer)
    scores = score_documents(model, documents, batch_size=3, precision="fp32")
    for number in range(len(documents)):
        item = documents[number]
        with torch.no_grad():
            logits = model(item["input_ids"][None]).logits[0].double().numpy()
        logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        kl = agreement = nll = 0.0
        rows = [row for row in range(1, len(logits)) if item["has_kd"][row]]
        for row in rows:
            student_row = logprobs[row - 1]
            ids = item["topk_ids"][row].tolist()
            teacher = np.exp([*item["topk_logprobs"][row].tolist(), float(item["other_logprob"][row])])
            teacher /= teacher.sum()
            rest = np.exp(np.delete(student_row, ids)).sum()
            kl += sum(p * math.log(p / math.exp(student_row[i])) for p, i in zip(teacher[:-1], ids, strict=True))
            kl += teacher[-1] * math.log(teacher[-1] / rest)
            agreement += student_row.argmax() == ids[0]
            nll -= student_row[int(item["input_ids"][row])]
        assert scores.kl[number] == pytest.approx(kl, rel=1e-4)
        assert scores.agreement[number] == agreement
        assert scores.nll[number] == pytest.approx(nll, rel=1e-5)
        assert scores.kd_positions[number] == len(rows)
    assert summary(scores)["documents"] == len(documents)


def test_scoring_leaves_the_model_as_it_was(traces: Any, student: StudentConfig) -> None:
    model = build_student(student, None, 32).train()
    documents = KDTraceDataset(traces.data, "heldout", tokenizer_folder=traces.tokenizer)
    score_documents(model, documents, 2, "fp32", limit=2)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ('{"a": 1}', 1.0),
        ("Sure:\n```json\n[1, 2]\n```", 1.0),
        ("```\n{}\n```", 1.0),
        ('{"a": 1', 0.0),
        ("Sure: {}", 0.0),
    ],
)
def test_json_validity(text: str, valid: float) -> None:
    assert json_validity([{"text": text, "format": "json"}, {"text": "no", "format": None}]) == valid


def test_json_validity_without_json_prompts() -> None:
    assert json_validity([{"text": "{}", "format": None}]) is None


def test_checkpoint_folder_without_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="run the train stage first"):
        latest_checkpoint(tmp_path)


def test_traces_of_another_projection_are_refused(
    traces: Any, other_traces: Any, student: StudentConfig, tmp_path: Path
) -> None:
    """Another holdout would measure the student on documents that it was trained on."""
    train_one_step(tmp_path, traces, student)
    with pytest.raises(CoreError, match=r"another projection \(other\).*\(test\).*bitnet run MANIFEST --from train"):
        measure(tmp_path, other_traces, student)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_traces_without_teacher_distributions(sequence_traces: Any, student: StudentConfig, tmp_path: Path) -> None:
    summary = train_one_step(tmp_path, sequence_traces, student)
    assert summary["warnings"][0] == "no KD positions: the student learns by cross-entropy alone"
    assert summary["last"]["validation_kl"] is None
    assert summary["last"]["loss"] > 0
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    report = measure(tmp_path, sequence_traces, student)
    for name in ("heldout_kl", "unigram_kl", "bigram_kl", "untrained_kl", "top1_agreement"):
        assert report[name] is None, name
    assert "top_k = 0" in report["kl_missing"]
    for name in ("perplexity", "tokens_per_second", "memory_bytes", "qei", "qei_speed"):
        assert math.isfinite(report[name]), name
    assert report["intervals_95"]["heldout_kl"] is None
    assert "NaN" not in json.dumps(report)


def test_nothing_is_missing_with_teacher_distributions(report: dict[str, Any]) -> None:
    assert report["kl_missing"] is None


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_kl_of_prompts_alone_is_none(traces: Any, student: StudentConfig) -> None:
    documents = KDTraceDataset(traces.data, "heldout", max_seq_len=2, tokenizer_folder=traces.tokenizer)
    assert mean_heldout_kl(build_student(student, None, 32), documents, 4, 2, "fp32") is None


@pytest.mark.parametrize(
    ("name", "damage"), [("model.safetensors", b"\xff" * 40), ("config.json", b"{"), ("config.json", b"[]")]
)
def test_a_damaged_checkpoint_is_named(
    traces: Any, student: StudentConfig, tmp_path: Path, name: str, damage: bytes
) -> None:
    train_one_step(tmp_path, traces, student)
    (tmp_path / "step_1" / name).write_bytes(damage)
    with pytest.raises(CoreError, match=rf"step_1.{name}: not a complete checkpoint.*delete the folder"):
        measure(tmp_path, traces, student)


def test_calibration_against_positions_written_out(traces: Any, student: StudentConfig) -> None:
    model = build_student(attrs.evolve(student, activation_bits=16), None, 32, seed=1).eval()
    documents = KDTraceDataset(traces.data, "heldout", tokenizer_folder=traces.tokenizer)
    confidences, right = [], []
    for number in range(len(documents)):
        item = documents[number]
        with torch.no_grad():
            probabilities = model(item["input_ids"][None]).logits[0].double().softmax(-1)
        for row in range(1, len(probabilities)):
            if math.isfinite(item["sample_logprob"][row]) and not item["is_prompt"][row]:
                confidences.append(float(probabilities[row - 1].max()))
                right.append(int(probabilities[row - 1].argmax()) == int(item["input_ids"][row]))
    bins = np.minimum((np.asarray(confidences) * BINS).astype(int), BINS - 1)
    excess = np.asarray(right) - np.asarray(confidences)
    gaps = [abs(excess[bins == each].sum()) / len(bins) for each in range(BINS)]
    found = summary(score_documents(model, documents, batch_size=3, precision="fp32"))
    assert found["calibration"]["ece"] == pytest.approx(sum(gaps), abs=1e-6)
    assert sum(each["positions"] for each in found["calibration"]["bins"]) == found["scored_positions"]
    (bin_of_teacher,) = found["teacher_calibration"]["bins"]
    assert bin_of_teacher["confidence"] == pytest.approx(0.7, rel=1e-3), "the teacher always says 0.7"


def test_a_model_that_is_right_as_often_as_it_says_is_calibrated() -> None:
    confidence = torch.full((10,), 0.8)
    right = torch.arange(10) < 8
    everything = torch.ones(10)
    perfect = calibration(bin_sums(confidence, right, everything).sum(0).numpy())
    assert perfect is not None
    assert perfect["ece"] == pytest.approx(0.0, abs=1e-7)
    assert perfect["bins"] == [{"from": 0.8, "positions": 10, "confidence": pytest.approx(0.8), "accuracy": 0.8}]
    boasting = calibration(bin_sums(torch.ones(10), right, everything).sum(0).numpy())
    assert boasting is not None
    assert boasting["ece"] == pytest.approx(0.2), "sure of all, right in 8 of 10; 1.0 belongs to the last bin"
    assert calibration(bin_sums(confidence, right, torch.zeros(10)).sum(0).numpy()) is None
