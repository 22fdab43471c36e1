"""benchmarks.gpu_check without a GPU: one row for each part, whatever becomes of it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_check
from benchmarks.gpu_check import PARTS, Part

A_GPU = {"cuda": True, "name": "Any", "capability": [7, 5], "bytes": 16e9, "bfloat16": False, "versions": {}}
FINE = "print('words'); print('{\"figure\": 3}')"
FAILS = "raise ValueError('on purpose')"
HANGS = "import time; time.sleep(600)"
DOES_NOT_WANT_TO_END = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
print(child.pid, flush=True)
time.sleep(600)
"""


def part(name: str, program: str, seconds: int = 300, needs: tuple[str, ...] = ()) -> Part:
    return Part(name, seconds, lambda machine: ["-c", program], needs, lambda found: f"the figure is {found['figure']}")


def looked_at(monkeypatch: pytest.MonkeyPatch, machine: Mapping[str, Any]) -> None:
    monkeypatch.setattr(gpu_check, "OF_THE_MACHINE", f"import json; print(json.dumps({dict(machine)}))")


def checked(*parts: Part, out: Path | None = None, seconds: float = 600) -> dict[str, Any]:
    variables = {**os.environ, "PYTHONPATH": ""}
    return gpu_check.check("cuda", parts, variables, time.monotonic() + seconds, out)


def test_a_part_that_fails_or_hangs_costs_one_row(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    looked_at(monkeypatch, A_GPU)
    parts = (part("fails", FAILS), part("hangs", HANGS, seconds=1), part("fine", FINE))
    rows = checked(*parts, out=tmp_path)["parts"]
    assert {name: row["status"] for name, row in rows.items()} == {"fails": "failed", "hangs": "hung", "fine": "ok"}
    assert "ValueError: on purpose" in rows["fails"]["tail"]
    assert rows["fine"]["figures"] == {"figure": 3}
    stored = json.loads((tmp_path / "gpu_check.json").read_text())
    assert stored["parts"] == rows
    assert {"command", "commit", "sources_sha256"} == stored["made_by"].keys()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["fails", "failed"], ["hangs", "hung"], ["fine", "ok"]]
    assert lines[1].endswith("ValueError: on purpose")
    assert lines[3].endswith("the figure is 3")


def test_what_had_to_be_ended_is_gone_with_all_that_it_had_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "GRACE", 0.2)
    command = [sys.executable, "-c", DOES_NOT_WANT_TO_END]
    with subprocess.Popen(command, stdout=subprocess.PIPE, process_group=0) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip().isdigit(), "its child has begun"
        gpu_check._end(process)
        assert process.wait() == -signal.SIGKILL
        assert process.stdout.read() == b"", "the child, which has this pipe too, would keep it open"


def test_what_is_lacking_is_told_at_once_and_in_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at(monkeypatch, A_GPU)
    monkeypatch.setattr(gpu_check, "OWN", (*gpu_check.OWN, "no_arrow"))
    needy = part("needy", FINE, needs=("json", "no_msgspec", "no_arrow"))
    rows = checked(needy, part("fine", FINE))["parts"]
    assert list(rows) == ["needs", "needy", "fine"]
    assert [row["status"] for row in rows.values()] == ["lacking", "not run", "ok"]
    assert (
        "not here: no_msgspec (where there is a network, python -m benchmarks.gpu_check --pack" in rows["needs"]["said"]
    )
    assert rows["needs"]["said"].endswith("too large to carry: no_arrow; install them")


def test_after_the_time_for_all_nothing_more_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at(monkeypatch, A_GPU)
    now = iter([0.0, 5.0, 595.0])  # the machine's look, and the two parts
    monkeypatch.setattr(gpu_check.time, "monotonic", lambda: next(now, 595.0))
    monkeypatch.setattr(gpu_check, "run", lambda *_: gpu_check._row("ok", said="", figures=A_GPU))
    rows = gpu_check.check("cuda", (part("first", FINE), part("second", FINE)), {"PYTHONPATH": ""}, 595.5)["parts"]
    assert [row["status"] for row in rows.values()] == ["ok", "not run"]


def test_all_limits_together_are_within_ten_minutes() -> None:
    assert gpu_check.MACHINE_SECONDS + sum(each.seconds for each in PARTS) <= gpu_check.SECONDS == 600


def test_a_machine_without_a_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at(monkeypatch, A_GPU | {"cuda": False})
    rows = checked(part("fine", FINE))["parts"]
    assert {name: row["said"] for name, row in rows.items()} == {
        "machine": "torch sees no CUDA GPU here; --device cpu is for tests"
    }


def test_parts_find_our_packages_where_nothing_is_installed(tmp_path: Path) -> None:
    """Modules, versions, and the plugins' entry points; -S leaves this environment's packages out."""
    program = (
        "import bitnet_core.lazy, bitnet_storage.lazy, carried_along; from importlib.metadata import *;"
        "print(version('bitnet-cli'), sorted(each.name for each in entry_points(group='bitnet')))"
    )
    (tmp_path / "carried_along.py").touch()
    with gpu_check.environment("cuda", tmp_path) as variables:
        done = subprocess.run([sys.executable, "-S", "-c", program], env=variables, capture_output=True, text=True)
    assert done.stdout == "0.1.0 ['cli', 'core', 'providers', 'storage']\n", done.stderr


def test_the_tests_that_need_a_gpu_are_found() -> None:
    chosen = PARTS[1].command(gpu_check.Machine("cuda", 16, False))
    names = [Path(word).name for word in chosen if word.endswith(".py")]
    assert {"test_chunk_triton.py", "test_triton_products.py"} <= set(names)
    assert gpu_check._tested("...\n3 passed, 1 skipped in 9.1s") == {
        "passed": 3, "skipped": 1, "said": "3 passed, 1 skipped",
    }  # fmt: skip


def test_what_is_packed_must_be_small_enough(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def install(command: list[str], **options: Any) -> None:
        asked.append(command)
        (tmp_path / "packed").mkdir(exist_ok=True)
        (tmp_path / "packed" / f"{len(asked)}").write_bytes(bytes(40))

    monkeypatch.setattr(gpu_check.subprocess, "run", install)
    monkeypatch.setattr(gpu_check.shutil, "which", lambda name: name)
    gpu_check.pack(tmp_path / "packed")
    assert {"msgspec", "python-dotenv", "tomli-w", "pytest"} <= set(asked[0])
    assert not {"torch", "pyarrow", "numpy"} & set(asked[0])
    monkeypatch.setattr(gpu_check, "CARRIED_BYTES", 79)
    with pytest.raises(SystemExit, match="is larger than"):
        gpu_check.pack(tmp_path / "packed")


@pytest.mark.slow
def test_on_a_cpu_the_parts_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Those that nothing else runs."""
    names = "kernels,dry_run,decode_gpu"
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--device", "cpu", "--only", names, "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        gpu_check.main()
    stored = json.loads((tmp_path / "gpu_check.json").read_text())
    assert ended.value.code == 0, stored
    kernels = stored["parts"]["kernels"]["figures"]
    assert {row["kernel"] for row in kernels["rows"]} == {
        "_row", "quantise_kernel", "gemv_kernel", "matmul_kernel", "dp4a_matmul_kernel",
    }  # fmt: skip
    assert stored["parts"]["dry_run"]["figures"]["layers"] == {"run": 2, "of": 2}
    assert stored["parts"]["decode_gpu"]["figures"]["vs_half"].keys() == {"20x96"}
