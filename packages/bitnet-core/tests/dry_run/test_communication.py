"""What devices send each other, by hand; what they really send is in benchmarks/results/many_processes.json."""

import pytest

from bitnet_core.config.dry_run import DryRunConfig
from bitnet_core.dry_run.communication import communication, volume
from bitnet_core.dry_run.formulas import sizes_of


def test_two_devices_send_each_other_halves() -> None:
    found = volume(layer=100, layers=3, rest=10, devices=2)
    # Each owns half of 310 parameters. It sends them for the forward pass, those of layers again for the backward pass,
    # and half of the gradients to the other.
    assert (found.gathered, found.scattered) == (4 * (155 + 150), 4 * 155)
    assert volume(100, 3, 10, 1).total == 0


def test_the_rows_of_a_7b() -> None:
    config = DryRunConfig(devices=4)
    rows = {row["devices"]: row for row in communication(config)}
    assert list(rows) == [2, 4, 8, 64, 512]
    whole = 4 * sizes_of(config).total
    assert rows[8]["reduce_scatter_bytes"] == pytest.approx(whole * 7 / 8)
    assert rows[512]["all_gather_bytes"] == pytest.approx(2 * whole, rel=0.05)  # the tables once
    sent = rows[8]["all_gather_bytes"] + rows[8]["reduce_scatter_bytes"]
    assert rows[8]["seconds"]["InfiniBand NDR"] == pytest.approx(sent / 50e9)
