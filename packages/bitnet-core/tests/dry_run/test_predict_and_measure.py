"""The dry run's report: what is measured, what is refused, what fits where."""

from typing import Any

import attrs
import pytest

from bitnet_core.config.dry_run import DryRunConfig
from bitnet_core.dry_run import predict_and_measure as module
from bitnet_core.dry_run.formulas import moment_bytes
from bitnet_core.dry_run.predict_and_measure import dry_run
from bitnet_core.dry_run.what_fits_table import what_fits
from bitnet_core.errors import CoreError
from bitnet_core.kernels import cpu_training

TINY: Any = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "batch_size": 2, "context": 32,
}  # fmt: skip


@pytest.mark.slow
def test_measured_where_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cpu_training.SWITCH, "0")  # the C++ of a CPU takes less than torch's operators
    notes: list[str] = []
    report = dry_run(DryRunConfig(**TINY), lambda done, total, note: notes.append(note))
    assert report["measured"]
    assert report["not_measured_because"] is None
    assert notes[-1] == "measured"
    for phase in report["phases"].values():
        assert abs(phase["fake_tensor_error"]) < 0.02
        assert phase["fake_tensor_error"] == phase["fake_tensor_bytes"] / phase["measured_bytes"] - 1


@pytest.mark.slow
def test_a_machine_that_is_too_small_predicts_the_same_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda device: 3 << 20)
    config = DryRunConfig(**TINY)
    report = dry_run(config)
    assert not report["measured"]
    assert report["not_measured_because"].endswith("CPU has 0.0 GB free")
    assert report["model"] == attrs.asdict(config)
    assert all(phase["fake_tensor_bytes"] and phase["measured_bytes"] is None for phase in report["phases"].values())
    with pytest.raises(CoreError, match=r'measure = "always", but it needs .* Nothing was run'):
        dry_run(attrs.evolve(config, measure="always"))


@pytest.mark.slow
def test_what_can_only_be_predicted() -> None:
    report = dry_run(DryRunConfig(**TINY, devices=2))
    assert not report["measured"]
    assert report["phases"]["train_a8"]["fake_tensor_bytes"] is None
    assert report["phases"]["decode"]["fake_tensor_bytes"] is not None
    assert report["fake_tensors_left_out"] == "training on 2 devices by formula alone"
    one = dry_run(DryRunConfig(**TINY, measure="never"))
    assert one["not_measured_because"] == 'dry_run.measure is "never"'


def test_eight_bit_moments_take_a_quarter() -> None:
    full, small = (moment_bytes(DryRunConfig(optimizer=name), 256 * 1000) for name in ("adamw", "adamw8bit"))
    assert (full, small) == (256 * 8 * 1000, (256 * 2 + 8) * 1000)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"hidden_size": 100, "num_attention_heads": 3}, "not a multiple of num_attention_heads"),
        ({"top_k": 300, "vocab_size": 300}, "top_k = 300 must be below vocab_size"),
        ({"devices": 2, "optimizer": "adamw8bit"}, "runs on one device"),
        ({"devices": 2, "measure": "always"}, "measured? ?.*on one device|runs on one device"),
        ({"attention": "flash"}, "attention"),
    ],
)
def test_refused(setting: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DryRunConfig(**setting)


def test_what_fits_where() -> None:
    rows = what_fits(DryRunConfig(), 2)
    assert {tuple(row["fits_gb"]) for row in rows} <= {(), (141,), (80, 141), (24, 80, 141)}

    def bytes_of(**wanted: Any) -> int:
        default = {
            "use": "train", "batch_size": 1, "context": 2048, "optimizer": "adamw", "devices": 1,
            "gradient_checkpointing": True,
        }  # fmt: skip
        (row,) = (row for row in rows if (default | wanted).items() <= row.items())
        return int(row["bytes_per_device"])

    assert bytes_of(devices=8) < bytes_of(devices=4) < bytes_of(devices=2) < bytes_of()
    assert bytes_of(optimizer="adamw8bit") < bytes_of()
    assert bytes_of(batch_size=4) < bytes_of(batch_size=4, gradient_checkpointing=False)
    assert bytes_of(context=8192) > bytes_of()
