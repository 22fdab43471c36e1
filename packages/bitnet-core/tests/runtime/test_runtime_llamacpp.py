"""llama.cpp's answers against torch's, on a student without activation quantisation, where both say the same."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bitnet_core.errors import CoreError
from bitnet_core.export.config import GGUFOptions
from bitnet_core.export.folder import export
from bitnet_core.export.gguf.exporter import gguf_exporter
from bitnet_core.runtime.contract import Runtime, Sampling, answer
from bitnet_core.runtime.open import open_runtime
from bitnet_core.runtime.torch_runtime import open_torch

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "The capital of France is"}]


@pytest.fixture(scope="module")
def folder(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkpoint = make_checkpoint(activation_bits=16)
    out = tmp_path_factory.mktemp("exports")
    export(checkpoint, {"gguf": gguf_exporter(GGUFOptions(types=("f32",)))}, out)
    (out / "checkpoint").symlink_to(checkpoint)
    return out


@pytest.fixture
def gguf(folder: Path) -> Iterator[Runtime]:
    with open_runtime(folder / "student-f32.gguf") as runtime:
        yield runtime


@pytest.mark.parametrize("prompt", [CHAT, "The capital of"])
def test_greedy_answers_are_torchs(folder: Path, gguf: Runtime, prompt: list[dict[str, str]] | str) -> None:
    pieces: list[str] = []
    ours = answer(gguf, prompt, Sampling(max_new_tokens=12), pieces.append)
    with open_torch(folder / "checkpoint", precision="fp32") as runtime:
        theirs = answer(runtime, prompt, Sampling(max_new_tokens=12))
    assert ours.prompt_tokens == theirs.prompt_tokens
    assert ours.text == theirs.text
    assert ours.reason == theirs.reason
    assert ours.tokens == theirs.tokens
    assert "".join(pieces) == ours.text
    assert len(pieces) > 1


def test_one_seed_one_answer_and_another_another(gguf: Runtime) -> None:
    def draw(seed: int) -> str:
        return answer(gguf, CHAT, Sampling(max_new_tokens=20, temperature=1.5, seed=seed)).text

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(4)}) > 1


def test_an_answer_that_is_left_early_does_not_stop_the_next(gguf: Runtime) -> None:
    stream = gguf.stream(CHAT, Sampling(max_new_tokens=50))
    next(stream)
    stream.close()
    assert answer(gguf, CHAT, Sampling(max_new_tokens=2)).tokens <= 2


def test_a_prompt_longer_than_the_context_is_refused(gguf: Runtime) -> None:
    with pytest.raises(CoreError, match="context"):
        answer(gguf, [{"role": "user", "content": "tea " * 5000}], Sampling(max_new_tokens=1))


def test_our_own_messages_are_heard_while_llama_cpps_are_not(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before, sys.stderr = sys.stderr, open(2, "w", closefd=False)  # noqa: SIM115 -- the process's own, as in a terminal
    try:
        with open_runtime(folder / "student-f32.gguf"):
            print("tea is ready", file=sys.stderr)
        print("and gone", file=sys.stderr, flush=True)
    finally:
        sys.stderr = before
    said = capfd.readouterr().err
    assert "tea is ready\n" in said
    assert "and gone\n" in said
    assert "llama_model_loader" not in said


def test_a_server_that_is_left_at_once_ends(folder: Path) -> None:
    for _ in range(5):
        with open_runtime(folder / "student-f32.gguf"):
            pass


def test_bits_can_not_be_chosen_and_a_damaged_file_is_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CoreError, match="leave --bits out"), open_runtime(folder / "student-f32.gguf", bits=8):
        pass
    (tmp_path / "student.gguf").write_bytes(b"GGUF and then nothing")
    with pytest.raises(CoreError, match="can't load it"), open_runtime(tmp_path / "student.gguf"):
        pass


def test_without_llama_cpp_the_way_to_install_it_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(CoreError, match="pip install 'bitnet-core"), open_runtime(folder / "student-f32.gguf"):
        pass
