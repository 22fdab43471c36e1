"""The held-out documents in another runtime: the same positions, the same sums, and figures that name their source."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch

from bitnet_core.benchmarks.contract import DocumentScores, NotMeasured, TeacherAccess
from bitnet_core.benchmarks.heldout_and_agreement import agreement, heldout
from bitnet_core.config.evaluate import RUNTIME_NAMES, EvaluateConfig
from bitnet_core.config.export import GGUFOptions
from bitnet_core.config.loss import TopKOtherConfig
from bitnet_core.config.student import StudentConfig
from bitnet_core.config.train import TrainConfig
from bitnet_core.errors import CoreError
from bitnet_core.evaluation.evaluate import Evaluation, deployed, evaluate
from bitnet_core.evaluation.heldout import of_teacher, score_documents, score_in_runtime
from bitnet_core.export.gguf import find_gguf
from bitnet_core.export.gguf.write import write_files
from bitnet_core.export.load_student import load_student
from bitnet_core.losses.chunked import load_loss
from bitnet_core.model.choose_checkpoint import latest_checkpoint
from bitnet_core.model.read_checkpoint import load_model
from bitnet_core.runtime.llamacpp.llamacpp_runtime import open_llama_cpp
from bitnet_core.runtime.open import RUNTIMES
from bitnet_core.traces.dataset import KDTraceDataset
from bitnet_core.training.loop import train
from bitnet_core.training.setup import Job
from training_process import quiet

MakeCheckpoint = Callable[..., Path]


@attrs.frozen(eq=False)
class Logits:
    """A runtime that gives all logits of a text at once."""

    model: Any
    description = "torch, written out"

    def logits(self, ids: Sequence[int], last: int | None = None) -> torch.Tensor:
        with torch.no_grad():
            found = self.model(torch.tensor([list(ids)])).logits[0].float()
        return found if last is None else found[-last:]


@pytest.fixture(scope="module")
def documents(bpe_traces: Any) -> KDTraceDataset:
    return KDTraceDataset(bpe_traces.data, "heldout", tokenizer_folder=bpe_traces.tokenizer)


@pytest.fixture(scope="module")
def plain(make_checkpoint: MakeCheckpoint) -> Path:
    """A student that quantises nothing: every runtime says the same of it."""
    return make_checkpoint(activation_bits=16, quantise_weights=False)


def arrays(scores: DocumentScores) -> dict[str, Any]:
    return attrs.asdict(scores)


def test_every_name_has_its_runtime() -> None:
    assert tuple(RUNTIMES) == RUNTIME_NAMES


def test_logits_of_a_runtime_give_the_sums_of_the_model(plain: Path, documents: KDTraceDataset) -> None:
    model = load_model(plain).eval()
    ours = score_in_runtime(Logits(model), documents, None)
    theirs = score_documents(model, documents, 3, "fp32")
    assert ours is not None
    for name, values in arrays(theirs).items():
        np.testing.assert_allclose(arrays(ours)[name], values, rtol=1e-4, atol=1e-4, err_msg=name)


def test_llama_cpps_distributions_give_the_same(plain: Path, documents: KDTraceDataset, tmp_path: Path) -> None:
    theirs = score_documents(load_model(plain).eval(), documents, 3, "fp32")
    with open_llama_cpp(find_gguf.gguf_of(plain, None, tmp_path)) as runtime:
        ours = score_in_runtime(runtime, documents, 10_000)
    assert ours is not None
    np.testing.assert_array_equal(ours.kd_positions, theirs.kd_positions)
    np.testing.assert_allclose(ours.nll, theirs.nll, rtol=0.01)  # a file of float16
    np.testing.assert_allclose(ours.teacher_nll, theirs.teacher_nll, rtol=1e-6)
    assert ours.kl.sum() == pytest.approx(theirs.kl.sum(), rel=0.01)


def test_packed_gives_the_same(make_checkpoint: MakeCheckpoint, documents: KDTraceDataset, tmp_path: Path) -> None:
    checkpoint = make_checkpoint()
    theirs = score_documents(load_model(checkpoint).eval(), documents, 3, "fp32")
    with deployed("packed", checkpoint, tmp_path, 8, "fp32") as (runtime, file):
        assert file is None
        assert runtime.description.startswith("packed")
        ours = score_in_runtime(runtime, documents, None)
    assert ours is not None
    np.testing.assert_array_equal(ours.kd_positions, theirs.kd_positions)
    np.testing.assert_allclose(ours.nll, theirs.nll, rtol=0.01)  # a head of int8, scales of float16
    assert ours.kl.sum() == pytest.approx(theirs.kl.sum(), rel=0.01)


@pytest.mark.parametrize("positions", [1, 7, 40])
def test_a_few_positions_are_as_many_as_asked_for(plain: Path, documents: KDTraceDataset, positions: int) -> None:
    found = score_in_runtime(Logits(load_model(plain).eval()), documents, positions)
    assert found is not None
    assert found.scored_positions.sum() == positions
    assert len(found.nll) == min(len(documents), max(1, positions // 4))


def test_none_wanted_or_none_to_be_had(plain: Path, documents: KDTraceDataset) -> None:
    assert score_in_runtime(Logits(None), documents, 0) is None
    assert score_in_runtime(object(), documents, 5) is None  # type: ignore[arg-type]


def test_the_teacher_in_the_students_place(plain: Path, documents: KDTraceDataset) -> None:
    scores = of_teacher(score_documents(load_model(plain).eval(), documents, 3, "fp32"))
    assert float(scores.kl.sum()) == 0
    assert float(np.exp(scores.nll.sum() / scores.scored_positions.sum())) == pytest.approx(1 / 0.7, rel=1e-3)
    np.testing.assert_array_equal(scores.agreement, scores.top1_positions)


BASELINE = {
    "answers": [{"id": "a", "messages": [{"role": "user", "content": "tea?"}], "format": None, "text": "yes"}],
    "tokens_per_second": 20.0,
    "teacher": {"memory_bytes": 10_000_000},
}


@pytest.fixture(scope="module")
def run(bpe_traces: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train(Job(
        data_folder=bpe_traces.data, tokenizer_folder=bpe_traces.tokenizer, teacher_folder=None, student=STUDENT,
        loss=load_loss(TopKOtherConfig()), train=TrainConfig(steps=1, batch_size=4, precision="fp32"), seed=3,
        checkpoint_folder=folder / "checkpoints", metrics_file=folder / "metrics.jsonl", fingerprint="",
    ), quiet)  # fmt: skip
    return folder


STUDENT = StudentConfig(
    init_from="", hidden_size=256, intermediate_size=256, num_hidden_layers=1, num_attention_heads=4,
    num_key_value_heads=2,
)  # fmt: skip


def test_the_gguf_file_is_what_is_measured(run: Path, bpe_traces: Any) -> None:
    def refuse(*_: Any) -> Any:
        raise NotMeasured("it is far away")

    report = evaluate(Evaluation(
        checkpoint=latest_checkpoint(run / "checkpoints"), data_folder=bpe_traces.data,
        tokenizer_folder=bpe_traces.tokenizer, teacher_folder=None, baseline=BASELINE, student=STUDENT,
        precision="fp32", seed=3, run=run,
        config=EvaluateConfig(max_new_tokens=4, bootstrap_samples=50, runtime="llamacpp", runtime_positions=12),
        benchmarks={"heldout": heldout, "agreement": agreement},
        teacher=TeacherAccess(name="t", answers=refuse, model_folder=refuse),
    ), quiet)  # fmt: skip
    assert "llama.cpp" in report["runtime"]
    assert "student-tq2_0.gguf" in report["qei_inputs"]["student_memory_bytes"]["source"]
    assert "llama.cpp" in report["qei_inputs"]["student_tokens_per_second"]["source"]
    found = report["benchmarks"]["heldout"]
    assert "on 12 positions" in found["ran_in"]["student"]
    assert "llama.cpp" in report["qei_inputs"]["student_quality"]["source"]
    # The teacher on the very same positions, and the checkpoint in torch on all of them beside it.
    assert found["scores"]["perplexity"]["teacher"]["value"] == pytest.approx(1 / 0.7, rel=1e-3)
    assert found["scores"]["perplexity"]["student"]["value"] == pytest.approx(report["perplexity"], rel=0.3)
    assert "torch" in report["heldout_runtime"]
    quality = found["scores"]["perplexity"]["teacher"]["value"] / found["scores"]["perplexity"]["student"]["value"]
    assert report["qei"] == pytest.approx(quality / (report["memory_bytes"] / 10_000_000))
    assert report["generation"]["answers"][0]["tokens"] >= 1
    assert not (run / ".evaluation").exists()
    json.dumps(report)


def test_an_export_of_this_very_student_is_used_and_no_other(
    run: Path, make_checkpoint: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = latest_checkpoint(run / "checkpoints")
    exports, work = tmp_path / "exports", tmp_path / "work"
    exports.mkdir()
    work.mkdir()
    write_files(load_student(checkpoint), GGUFOptions(types=("q2_0",)), exports)
    made: list[Path] = []
    monkeypatch.setattr(find_gguf, "write_files", lambda student, options, out: made.append(out))
    assert find_gguf.gguf_of(checkpoint, exports, work) == exports / "student-q2_0.gguf"
    other = make_checkpoint(hidden_size=256, intermediate_size=256, num_hidden_layers=1)
    assert find_gguf.gguf_of(other, exports, work) == work / "student-tq2_0.gguf"
    (exports / "student-q2_0.gguf").write_bytes(b"GGUF and then nothing")
    assert find_gguf.gguf_of(checkpoint, exports, work) == work / "student-tq2_0.gguf"
    assert made == [work, work]


def test_a_student_that_the_runtime_can_not_hold_is_refused(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(hadamard=True)
    with pytest.raises(CoreError, match="hadamard"), deployed("llamacpp", checkpoint, tmp_path, 8, "fp32"):
        pass
    assert not (tmp_path / ".evaluation").exists()
