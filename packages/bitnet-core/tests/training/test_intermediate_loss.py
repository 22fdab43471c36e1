"""Terms on the inner layers: zero where the student is the teacher, and falling where it learns."""

import json
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bitnet_core.config.loss import IntermediateConfig, TopKOtherConfig
from bitnet_core.config.student import StudentConfig
from bitnet_core.config.train import TrainConfig
from bitnet_core.errors import CoreError
from bitnet_core.losses.chunked import load_loss
from bitnet_core.losses.masks_and_rows import token_weight
from bitnet_core.model.init_from import build_student
from bitnet_core.traces.dataset import KDTraceDataset
from bitnet_core.training import loop
from bitnet_core.training.intermediate_loss import hidden_distance, open_intermediate
from bitnet_core.training.micro_batch import training_batch
from bitnet_core.training.step import checkpoint_activations
from training_process import job, quiet

BOTH = IntermediateConfig(hidden_weight=1.0, relation_weight=1.0)
EXACT = StudentConfig(quantise_weights=False, activation_bits=16)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teacher_folder(traces: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with random weights that reads the traces' tokens."""
    folder = tmp_path_factory.mktemp("teacher")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = LlamaConfig(**sizes, vocab_size=32, num_key_value_heads=2, max_position_embeddings=64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        parameter.data.mul_(8 if parameter.dim() == 2 else 1)  # attention that looks somewhere
    model.save_pretrained(folder)
    for file in traces.tokenizer.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def opened(config: IntermediateConfig, folder: Path, traces: Any, model: Any) -> Any:
    return open_intermediate(config, folder, traces.tokenizer, model.model, torch.float32, CPU)


def terms(intermediate: Any, model: Any, batch: Any, normaliser: float = 1.0) -> tuple[torch.Tensor, Any]:
    _, seen = intermediate.hidden_states(model.model, batch)
    return intermediate.terms(seen, batch, normaliser)


@pytest.mark.parametrize("packed_length", [None, 60])
@pytest.mark.parametrize("distance", ["mse", "cosine"])
def test_zero_where_the_student_is_the_teacher(
    traces: Any, teacher_folder: Path, packed_length: int | None, distance: str
) -> None:
    model = build_student(EXACT, teacher_folder, 32)
    intermediate = opened(attrs.evolve(BOTH, hidden_distance=distance), teacher_folder, traces, model)
    assert intermediate.pairs == ((0, 0), (1, 1), (2, 2), (3, 3))
    batch = training_batch(KDTraceDataset(traces.data, split="train"), range(5), packed_length)
    value, metrics = terms(intermediate, model, batch, float(token_weight(batch)))
    assert set(metrics) == {"hidden", "relation"}
    assert abs(float(value.detach())) < 1e-6  # two ways through float32
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    _, metrics = terms(intermediate, model, batch, float(token_weight(batch)))
    assert min(float(each) for each in metrics.values()) > 1e-4


def test_gradients_are_finite_differences(traces: Any, teacher_folder: Path) -> None:
    model = build_student(attrs.evolve(EXACT, layers=(0, 3)), teacher_folder, 32).double()
    intermediate = opened(BOTH, teacher_folder, traces, model)
    batch = training_batch(KDTraceDataset(traces.data, split="train"), range(3), None)
    weights = [p for name, p in model.named_parameters() if "layers.1" in name and p.dim() == 2]
    with torch.no_grad():
        for weight in weights:
            weight.add_(0.05 * torch.randn_like(weight))
    value, _ = terms(intermediate, model, batch, 10.0)
    gradients = torch.autograd.grad(value, weights, allow_unused=True)
    steps = [torch.randn_like(weight) for weight in weights]
    pairs = zip(gradients, steps, strict=True)
    slope = sum(float((g * step).sum()) for g, step in pairs if g is not None)

    def moved(size: float) -> float:
        with torch.no_grad():
            for weight, step in zip(weights, steps, strict=True):
                weight.add_(size * step)
            return float(terms(intermediate, model, batch, 10.0)[0])

    ahead = moved(1e-3)  # norms are float32 inside: a smaller step would drown in their rounding
    assert (ahead - moved(-2e-3)) / 2e-3 == pytest.approx(slope, rel=2e-3)


def test_positions_that_predict_nothing_dont_count() -> None:
    student, teacher = torch.randn(1, 4, 8), torch.randn(1, 4, 8)
    weight = torch.tensor([[0.0, 1.0, 1.0, 0.0]])
    for kind in ("mse", "cosine"):
        before = hidden_distance(student, teacher, weight, kind)
        poisoned = student.clone()
        poisoned[0, [0, 3]] = torch.nan
        assert torch.equal(hidden_distance(poisoned, teacher, weight, kind), before)
        assert torch.equal(hidden_distance(poisoned, teacher, weight, kind, torch.tensor([[0, 1], [0, 2]])), before)
    expected = sum(1 - torch.cosine_similarity(student[0, t], teacher[0, t], dim=0) for t in (1, 2))
    torch.testing.assert_close(hidden_distance(student, teacher, weight, "cosine"), expected)


@pytest.mark.slow
def test_accumulation_adds_up(traces: Any, teacher_folder: Path) -> None:
    model = build_student(attrs.evolve(EXACT, quantise_weights=True), teacher_folder, 32)
    intermediate = opened(BOTH, teacher_folder, traces, model)
    documents = KDTraceDataset(traces.data, split="train")
    whole, parts = (documents.batch(range(6)), [documents.batch(range(2)), documents.batch(range(2, 6))])
    normaliser = float(token_weight(whole))
    value, _ = terms(intermediate, model, whole, normaliser)
    pieces = sum(terms(intermediate, model, part, normaliser)[0] for part in parts)
    torch.testing.assert_close(pieces, value)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_recomputed_layers_give_the_same_gradient(traces: Any, teacher_folder: Path, checkpointing: bool) -> None:
    model = build_student(attrs.evolve(EXACT, quantise_weights=True), teacher_folder, 32)
    plain = build_student(attrs.evolve(EXACT, quantise_weights=True), teacher_folder, 32)
    if checkpointing:
        checkpoint_activations(model)
    batch = training_batch(KDTraceDataset(traces.data, split="train"), range(3), None)
    for each in (model, plain):
        terms(opened(BOTH, teacher_folder, traces, each), each, batch)[0].backward()
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None)
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad)


@pytest.mark.slow
def test_the_terms_fall(traces: Any, teacher_folder: Path, settings: TrainConfig, tmp_path: Path) -> None:
    ternary = attrs.evolve(settings, steps=40, flip_fraction=1.0, ternary_warmup_steps=0)
    plain = job(tmp_path, traces.data, traces.tokenizer, StudentConfig(), ternary)
    compared = attrs.evolve(
        plain,
        teacher_folder=teacher_folder,
        loss=load_loss(TopKOtherConfig(ce_weight=0.0, format_weight=0.0)),
        intermediate=IntermediateConfig(hidden_weight=10.0, relation_weight=10.0),
        intermediate_teacher=teacher_folder,
    )
    loop.train(compared, quiet)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for name in ("hidden", "relation"):
        assert sum(row[name] for row in rows[-5:]) < 0.7 * sum(row[name] for row in rows[:5])
    for row in rows:
        assert row["loss"] == pytest.approx(row["kd"] + 10 * row["hidden"] + 10 * row["relation"], rel=1e-5)


def test_a_hooked_layer_is_not_compiled(
    traces: Any, teacher_folder: Path, settings: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda layer: compiled.append(layer))
    plain = job(tmp_path, traces.data, traces.tokenizer, StudentConfig(), attrs.evolve(settings, steps=1, compile=True))
    compared = attrs.evolve(
        plain,
        teacher_folder=teacher_folder,
        loss=load_loss(TopKOtherConfig()),
        intermediate=IntermediateConfig(relation_weight=1.0, relation_student_layer=2, relation_teacher_layer=2),
        intermediate_teacher=teacher_folder,
    )
    loop.train(compared, quiet)
    assert len(compiled) == 3


@pytest.mark.parametrize(
    ("config", "student", "fix"),
    [
        ({"hidden_weight": 1.0}, {"init_from": "", "hidden_size": 64, "num_attention_heads": 4}, "64 wide"),
        ({"relation_weight": 1.0, "relation_heads": 3}, {}, "3 heads don't divide"),
        ({"relation_weight": 1.0, "relation_teacher_layer": 4}, {}, "teacher has layers 0 to 3, and 4 is none"),
        ({"hidden_weight": 1.0, "student_layers": (-5,), "teacher_layers": (0,)}, {}, "student has layers 0 to 3"),
    ],
)
def test_what_can_not_be_compared(
    traces: Any, teacher_folder: Path, config: dict[str, Any], student: dict[str, Any], fix: str
) -> None:
    model = build_student(StudentConfig(**student), teacher_folder, 32)
    with pytest.raises(CoreError, match=fix):
        opened(IntermediateConfig(**config), teacher_folder, traces, model)


def test_another_tokenizer_is_refused(teacher_folder: Path, traces: Any, tokenizer_folder: Path) -> None:
    model = build_student(StudentConfig(), teacher_folder, 32)
    with pytest.raises(CoreError, match=r'set project.tokenizer = "teacher"'):
        open_intermediate(BOTH, teacher_folder, tokenizer_folder, model.model, torch.float32, CPU)


def test_only_the_layers_that_are_needed_are_kept(traces: Any, teacher_folder: Path) -> None:
    model = build_student(attrs.evolve(EXACT, layers=(0, 1)), teacher_folder, 32)
    config = IntermediateConfig(hidden_weight=1.0, student_layers=(0, 1), teacher_layers=(0, 1))
    intermediate = opened(config, teacher_folder, traces, model)
    assert len(intermediate.teacher.layers) == 2
    batch = training_batch(KDTraceDataset(traces.data, split="train"), range(3), None)
    assert float(terms(intermediate, model, batch)[0].detach()) < 1e-8
    assert opened(IntermediateConfig(hidden_weight=1.0), teacher_folder, traces, model).pairs == ((0, 1), (1, 3))


@pytest.mark.parametrize(
    ("settings_", "problem"),
    [
        ({}, "nothing is compared"),
        ({"hidden_weight": 1.0, "student_layers": (0, 1), "teacher_layers": (0,)}, "2 layers and teacher_layers 1"),
        ({"hidden_weight": float("nan")}, "finite"),
        ({"relation_weight": 1.0, "relation_temperature": 0.0}, "above 0"),
    ],
)
def test_settings_that_say_nothing(settings_: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        IntermediateConfig(**settings_)
