"""Compiling: once, whoever starts at the same time, for the instruction set that is asked for."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from bitnet_core.errors import CoreError
from bitnet_core.kernels.compile import (
    NoCompilerError,
    cache_folder,
    chosen_instruction_set,
    compiled,
    instruction_sets,
    loaded,
)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A C++ file that is compiled in no time, into a cache of its own."""
    monkeypatch.setenv("BITNET_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "answer.cpp"
    file.write_text('#include "answer.h"\nextern "C" int answer() { return kAnswer; }\n')
    file.with_suffix(".h").write_text("constexpr int kAnswer = 42;\n")
    return file


def test_it_is_compiled_once(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compiled(source, "portable")
    assert loaded(first).answer() == 42
    written = first.stat().st_mtime_ns
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert compiled(source, "portable") == first
    assert first.stat().st_mtime_ns == written
    there = {file.name for file in (tmp_path / "cache/runtime").iterdir()}
    assert there == {first.name, first.with_suffix(".sha256").name}


def test_a_header_that_changes_makes_another_library(source: Path) -> None:
    header = source.with_suffix(".h")
    first = compiled(source, "portable", (header,))
    header.write_text("constexpr int kAnswer = 43;\n")
    second = compiled(source, "portable", (header,))
    assert (loaded(first).answer(), loaded(second).answer()) == (42, 43)


@pytest.mark.slow
def test_processes_that_start_together_get_one_whole_library(source: Path, tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from bitnet_core.kernels.compile import compiled, loaded; "
        f"assert loaded(compiled(Path({str(source)!r}), 'portable')).answer() == 42"
    )
    started = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait() for process in started] == [0, 0]
    assert len(list((tmp_path / "cache/runtime").iterdir())) == 2, "the library and its digest"


def test_a_cache_that_cant_be_written_is_told(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BITNET_CACHE", str(tmp_path / "file"))
    with pytest.raises(NoCompilerError, match="set the environment variable BITNET_CACHE to a folder that can be"):
        compiled(source, "portable")


@pytest.mark.parametrize("content", [b"", b"made for another machine" * 100])
def test_a_library_that_cant_be_loaded_is_named(source: Path, content: bytes) -> None:
    file = compiled(source, "portable")
    file.write_bytes(content)
    file.with_suffix(".sha256").write_text(hashlib.sha256(content).hexdigest())
    with pytest.raises(NoCompilerError, match=f"{file}: the compiled library can't be loaded .*  → delete it"):
        loaded(file)


def test_a_library_that_was_damaged_is_compiled_anew(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One flipped bit may load, and kill the process later."""
    file = compiled(source, "portable")
    whole = file.read_bytes()
    for damaged in (whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:], whole[:-100], b""):
        file.write_bytes(damaged)
        assert compiled(source, "portable") == file
        assert len(file.read_bytes()) == len(whole)
    file.with_suffix(".sha256").unlink()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(NoCompilerError, match="no C"):
        compiled(source, "portable")


def test_machines_of_two_kinds_share_a_cache(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = compiled(source, "portable")
    monkeypatch.setattr("platform.machine", lambda: "a-machine-of-another-kind")
    assert compiled(source, "portable") != here


def test_what_the_compiler_says_is_passed_on(source: Path) -> None:
    source.write_text("this is no C++")
    with pytest.raises(NoCompilerError, match=r"can't compile answer\.cpp \(.*error"):
        compiled(source, "portable")


def test_a_compiler_that_is_no_command_is_told(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "g++ '")
    with pytest.raises(NoCompilerError, match="CXX is no command"):
        compiled(source, "portable")


def test_the_instruction_set_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BITNET_CPU", raising=False)
    assert chosen_instruction_set() == instruction_sets()[0]
    assert chosen_instruction_set("portable") == "portable"
    monkeypatch.setenv("BITNET_CPU", "portable")
    assert chosen_instruction_set() == "portable"
    monkeypatch.setenv("BITNET_CPU", "mmx")
    with pytest.raises(CoreError, match=r'instruction set "mmx": this machine runs .*portable  → set BITNET_CPU'):
        chosen_instruction_set()


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BITNET_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("BITNET_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_folder() == tmp_path / "x/bitnet"
