"""A device that isn't there is told by `bitnet plan`, without torch."""

import subprocess
import sys
from pathlib import Path

import pytest

from bitnet_providers.plugin import bitnet_teachers
from bitnet_providers.teachers.local import device_and_dtype
from bitnet_providers.teachers.local.options import LocalTeacherConfig


def device_problems(wanted: str) -> list[str]:
    return [str(problem) for problem in device_and_dtype.device_problems(wanted)]


def test_what_is_everywhere() -> None:
    assert device_problems("auto") == device_problems("cpu") == []


def test_without_a_driver_there_is_no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(Path, "exists", lambda path: False)
    monkeypatch.setattr("ctypes.CDLL", missing)
    expected = (
        'device: "cuda" can\'t be used here (there is no NVIDIA driver)  → write "auto", "cpu" or a device that exists'
    )
    assert device_problems("cuda") == [expected]


def test_gpus_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"]
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(Path, "exists", lambda path: False)
    monkeypatch.setattr("ctypes.CDLL", lambda name: None)
    monkeypatch.setattr(Path, "glob", lambda path, pattern: [path / name for name in names])
    assert device_problems("cuda") == device_problems("cuda:1") == []
    assert "there are 2 GPUs, counted from 0" in device_problems("cuda:2")[0]
    names.clear()  # WSL
    assert device_problems("cuda:2") == []


def test_mps_is_apples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    assert "Apple computers only" in device_problems("mps")[0]
    monkeypatch.setattr(sys, "platform", "darwin")
    assert device_problems("mps") == []
    assert "no CUDA" in device_problems("cuda")[0]


@pytest.mark.parametrize("wanted", ["gpu", "cuda:one", "CUDA", ""])
def test_a_name_of_nothing_is_refused(wanted: str) -> None:
    (problem,) = device_problems(wanted)
    assert problem.startswith(f'device: "{wanted}" can\'t be used here (')


def test_the_plugin_asks(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_and_dtype, "_no_cuda", lambda index: f"no GPU {index}")
    plugin = next(each for each in bitnet_teachers() if each.name == "local")
    assert plugin.check is not None
    (problem,) = plugin.check(LocalTeacherConfig(model=str(tiny_folder), device="cuda:3"))
    assert "no GPU 3" in str(problem)


def test_torch_is_not_loaded_for_the_usual_ones() -> None:
    code = (
        "import sys; from bitnet_providers.teachers.local.device_and_dtype import device_problems as p; "
        "[p(each) for each in ('auto', 'cpu', 'cuda', 'cuda:7', 'mps')]; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
