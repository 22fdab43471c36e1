"""Triton's kernels compile for GPUs that aren't here, and the stored figures are those of the kernels as they are."""

import json
from typing import Any

import pytest

pytest.importorskip("triton", reason="torch brings Triton on Linux only")
from benchmarks import kernels, rooflines, stale

ROWS: list[dict[str, Any]] = json.loads((stale.RESULTS / "kernels.json").read_text())["rows"]


@pytest.mark.slow
@pytest.mark.parametrize("capability", [75, 90])
def test_each_kernel_compiles(capability: int) -> None:
    usual = {launch.name: launch for launch in reversed(list(kernels.launches(capability)))}
    product = "matmul_kernel" if capability >= 80 else "dp4a_matmul_kernel"
    assert set(usual) == {"_row", "quantise_kernel", "gemv_kernel", product}
    for launch in usual.values():
        assert kernels.faults_of(kernels.figures_of(launch, capability)) == []


def test_the_stored_figures_are_of_these_kernels() -> None:
    assert stale.fault_of("kernels") is None, "python -m benchmarks.kernels"


@pytest.mark.parametrize("capability", kernels.CAPABILITIES)
def test_all_that_the_code_launches_is_in_them_without_a_fault(capability: int) -> None:
    rows = [row for row in ROWS if row["capability"] == capability]
    launched = [(launch.name, launch.variant) for launch in kernels.launches(capability)]
    assert [(row["kernel"], row["variant"]) for row in rows] == launched
    assert [fault for row in rows for fault in kernels.faults_of(row)] == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"spills": 2}, "spills: 2 instructions"),
        ({"stack_bytes": 40}, "spills: 0 instructions, 40 bytes"),
        ({"shared_bytes": 65_537}, "65537 bytes of shared memory: the chip has 65536"),
        ({"registers": 255, "warps": 16}, "255 registers in each of 16 warps"),
        ({"dp4a": 0}, "no dp4a"),
        ({"wide_loads": 0}, "no wide_loads"),
        ({"kernel": "matmul_kernel"}, "no matrix"),
    ],
)
def test_what_would_not_run_is_a_fault(change: dict[str, Any], fault: str) -> None:
    row = next(row for row in ROWS if (row["kernel"], row["capability"]) == ("gemv_kernel", 75))
    assert kernels.faults_of(row) == []
    assert any(fault in each for each in kernels.faults_of(row | change))


def test_the_page_has_the_rooflines() -> None:
    page = (stale.ROOT / "docs" / "runtime-gpu.md").read_text(encoding="utf-8")
    assert rooflines.table() in page, "python -m benchmarks.rooflines"


def test_a_roofline_is_the_longer_of_two_times() -> None:
    """One token through 4096 x 11008: two bits a weight at 320 GB/s; its 90 million operations are faster."""
    launch = kernels.recorded("", 75, lambda: kernels.multiplied(outputs=4096, inputs=11008))[0]
    need = rooflines.need_of(launch)
    codes, ends = 4096 * 11008 // 4, 4096 * (4 + 2) + 11008 + 8
    assert (need.bytes, need.operations) == (codes + ends, 2 * 4096 * 11008)
    assert need.seconds(rooflines.CHIPS[0]) == pytest.approx((codes + ends) / 320e9)
    many = rooflines.need_of(kernels.recorded("", 75, lambda: kernels.multiplied(tokens=512))[0])
    assert many.seconds(rooflines.CHIPS[0]) == pytest.approx(512 * 2 * 4096 * 11008 / (40 * 64 * 8 * 1.59e9))
