"""What is predicted, by formula and by fake tensors, is what is used: phase by phase, on small students."""

from typing import Any

import pytest
import torch

from bitnet_core.config.dry_run import DryRunConfig
from bitnet_core.dry_run.formulas import predict, sizes_of
from bitnet_core.dry_run.predict_and_measure import measure, predict_with_fakes
from bitnet_core.dry_run.run_phases import PHASES, full_batch
from bitnet_core.kernels import cpu_training
from bitnet_core.losses.masks_and_rows import token_weight
from bitnet_core.model.init_from import build_student

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def torchs_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is predicted is what torch's own operators take; the C++ of a CPU takes less."""
    monkeypatch.setenv(cpu_training.SWITCH, "0")


SIZES: Any = {
    "vocab_size": 2000, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 8, "batch_size": 2, "context": 128,
}  # fmt: skip
SETTINGS: list[dict[str, Any]] = [
    {},
    {"gradient_checkpointing": False},
    {"precision": "fp32", "gradient_checkpointing": False},
    {"precision": "fp32"},
    {"num_key_value_heads": 2, "gradient_checkpointing": False, "batch_size": 4},
    {"tie_word_embeddings": True, "vocab_size": 8000},
    {"attention": "eager", "gradient_checkpointing": False},
]


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_predicted_is_measured(setting: dict[str, Any]) -> None:
    config = DryRunConfig(**SIZES | setting)
    formulas = predict(config, compute_bytes=4 if config.precision == "fp32" else 2, on_cpu=True)
    fakes, real = predict_with_fakes(config, CPU), measure(config, CPU)
    assert tuple(formulas) == tuple(fakes) == tuple(real) == PHASES
    assert fakes == pytest.approx(real, rel=0.01)
    assert formulas == pytest.approx(real, rel=0.03)


@pytest.mark.slow
def test_compiled_steps_take_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    config = DryRunConfig(**SIZES, gradient_checkpointing=False)
    plain = measure(config, CPU)
    monkeypatch.delenv(cpu_training.SWITCH)
    compiled = measure(config, CPU)
    assert all(compiled[phase] <= plain[phase] for phase in PHASES)
    assert cpu_training.load_library() is None or compiled["train_a4"] < plain["train_a4"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "off"),
    [
        ({"context": 1024, "gradient_checkpointing": False}, 0.02),
        ({"context": 1024, "batch_size": 4}, 0.03),
        ({"context": 1024, "precision": "fp32"}, 0.06),
        ({"context": 1024, "attention": "eager"}, 0.1),
    ],
    ids=str,
)
def test_formulas_where_activations_are_most_of_it(setting: dict[str, Any], off: float) -> None:
    config = DryRunConfig(**SIZES | setting)
    formulas = predict(config, compute_bytes=4 if config.precision == "fp32" else 2, on_cpu=True)
    assert formulas == pytest.approx(predict_with_fakes(config, CPU), rel=off)


@pytest.mark.parametrize("setting", [{}, {"tie_word_embeddings": True}, {"num_key_value_heads": 2}], ids=str)
def test_number_of_parameters(setting: dict[str, Any]) -> None:
    config = DryRunConfig(**SIZES | setting)
    model = build_student(config.student(), None, config.vocab_size)
    assert sizes_of(config).total == sum(parameter.numel() for parameter in model.parameters())


def test_the_defaults_are_a_true_7b() -> None:
    """Llama 2 7B has 6,738,415,616 parameters; ours beside them one scale a row of its ternary matrices."""
    rows = 32 * (5 * 4096 + 2 * 11008)
    assert sizes_of(DryRunConfig()).total == 6_738_415_616 + rows
    assert sizes_of(DryRunConfig()).layer == 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096 + rows // 32


def test_a_7b_step_takes_16_bytes_a_parameter() -> None:
    config = DryRunConfig()
    needed = predict(config, compute_bytes=2, on_cpu=False)
    assert needed["train_a4"] == pytest.approx(16 * sizes_of(config).total, rel=0.02)


def test_the_batch_is_full_but_for_one_position() -> None:
    config = DryRunConfig(**SIZES)
    assert token_weight(full_batch(config, CPU)) == config.batch_size * (config.context - 1) - 1
