"""Compiling: once, whoever starts at the same time, for the instruction set that is asked for."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bitnet_core.errors import CoreError
from bitnet_core.runtime.packed.cpu_library import (
    NoCompilerError,
    cache_folder,
    compiled,
    instruction_sets,
    load_library,
)


@pytest.mark.slow
def test_it_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITNET_CACHE", str(tmp_path))
    first = compiled("portable")
    written = first.stat().st_mtime_ns
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert compiled("portable") == first
    assert first.stat().st_mtime_ns == written
    assert {file.name for file in (tmp_path / "runtime").iterdir()} == {first.name, first.with_suffix(".sha256").name}


@pytest.mark.slow
def test_processes_that_start_together_get_one_whole_library(tmp_path: Path) -> None:
    code = "from bitnet_core.runtime.packed.cpu_library import load_library; load_library('portable')[0].bitnet_forward"
    started = [
        subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"BITNET_CACHE": str(tmp_path)})
        for _ in range(2)
    ]
    assert [process.wait() for process in started] == [0, 0]
    assert len(list((tmp_path / "runtime").iterdir())) == 2, "the library and its digest"


def test_a_cache_that_cant_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BITNET_CACHE", str(tmp_path / "file"))
    with pytest.raises(NoCompilerError, match="set the environment variable BITNET_CACHE to a folder that can be"):
        compiled("portable")


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", b"made for another machine" * 100])
def test_a_library_that_cant_be_loaded_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setenv("BITNET_CACHE", str(tmp_path))
    file = compiled("portable")
    file.write_bytes(content)
    file.with_suffix(".sha256").write_text(hashlib.sha256(content).hexdigest())
    with pytest.raises(NoCompilerError, match=f"{file}: the compiled runtime can't be loaded .*  → delete it"):
        load_library("portable")


@pytest.mark.slow
def test_a_library_that_was_damaged_is_compiled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One flipped bit may load, and kill the process at a token."""
    monkeypatch.setenv("BITNET_CACHE", str(tmp_path))
    file = compiled("portable")
    whole = file.read_bytes()
    for damaged in (whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:], whole[:-100], b""):
        file.write_bytes(damaged)
        assert compiled("portable") == file
        assert len(file.read_bytes()) == len(whole)
    file.with_suffix(".sha256").unlink()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(NoCompilerError, match="no C"):
        compiled("portable")


@pytest.mark.slow
def test_machines_of_two_kinds_share_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITNET_CACHE", str(tmp_path))
    here = compiled("portable")
    monkeypatch.setattr("platform.machine", lambda: "a-machine-of-another-kind")
    assert compiled("portable") != here


def test_a_compiler_that_is_no_command_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITNET_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "g++ '")
    with pytest.raises(NoCompilerError, match="CXX is no command"):
        compiled("portable")


def test_the_instruction_set_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_library()[1] == instruction_sets()[0]
    assert load_library("portable")[1] == "portable"
    monkeypatch.setenv("BITNET_CPU", "portable")
    assert load_library()[1] == "portable"
    monkeypatch.setenv("BITNET_CPU", "mmx")
    with pytest.raises(CoreError, match=r'instruction set "mmx": this machine runs .*portable  → set BITNET_CPU'):
        load_library()


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BITNET_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("BITNET_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_folder() == tmp_path / "x/bitnet"
