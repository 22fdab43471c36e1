"""The torch runtime against transformers' own `generate`, and everything that can't be opened."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_core.config.export import HFOptions, PackedOptions
from bitnet_core.errors import CoreError
from bitnet_core.export.folder import export
from bitnet_core.export.hf import hf_exporter
from bitnet_core.export.packed import packed_exporter
from bitnet_core.hardware import autocast
from bitnet_core.model.read_checkpoint import load_model
from bitnet_core.runtime.contract import Sampling, answer
from bitnet_core.runtime.open import open_runtime
from bitnet_core.runtime.sampling import Drawn, drawer, nucleus
from bitnet_core.runtime.torch_runtime import TorchRuntime

CHAT = [{"role": "user", "content": "The capital of France is"}]
GREEDY = Sampling(max_new_tokens=12)


@pytest.fixture(scope="module")
def exports(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exports")
    export(checkpoint, {"packed": packed_exporter(PackedOptions()), "hf": hf_exporter(HFOptions())}, out)
    return out


def test_greedy_pieces_are_what_transformers_generates(checkpoint: Path) -> None:
    with open_runtime(checkpoint, bits=8) as runtime:
        assert isinstance(runtime, TorchRuntime)
        pieces: list[str] = []
        said = answer(runtime, CHAT, GREEDY, pieces.append)
        inputs = runtime.tokenizer.apply_chat_template(
            CHAT, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        with autocast(runtime.precision, runtime.model.device):
            whole = runtime.model.generate(**inputs, max_new_tokens=12, do_sample=False)[0]
        ids = whole[inputs["input_ids"].shape[1] :]
    assert "".join(pieces) == said.text == runtime.tokenizer.decode(ids, skip_special_tokens=True)
    assert said.tokens == len(ids)
    assert said.prompt_tokens == inputs["input_ids"].shape[1]
    assert len(pieces) > 1
    assert said.reason == ("stop" if int(ids[-1]) == 2 else "length")


@pytest.mark.parametrize("target", ["packed", "hf"])
def test_exports_answer_too(exports: Path, target: str) -> None:
    with open_runtime(exports / target) as runtime:
        said = answer(runtime, CHAT, GREEDY)
        assert ("A8" in runtime.description) == (target == "packed")
    assert 1 <= said.tokens <= 12


def test_bits_are_the_models_own_unless_chosen(checkpoint: Path, exports: Path) -> None:
    with open_runtime(checkpoint, bits=4) as runtime:
        assert "A4" in runtime.description
    with open_runtime(exports / "hf", bits=8):
        pass
    with pytest.raises(CoreError, match="runs at 8 bits, and nothing else"), open_runtime(exports / "hf", bits=4):
        pass


def test_the_weights_are_quantised_once_and_let_go(checkpoint: Path) -> None:
    with open_runtime(checkpoint) as runtime:
        assert isinstance(runtime, TorchRuntime)
        layer = runtime.model.model.layers[0].self_attn.q_proj
        assert layer._held_weight is not None
    assert layer._held_weight is None


def test_one_seed_one_answer_and_another_another(checkpoint: Path) -> None:
    def draw(seed: int) -> str:
        return answer(runtime, CHAT, Sampling(max_new_tokens=20, temperature=1.5, seed=seed)).text

    with open_runtime(checkpoint) as runtime:
        assert draw(1) == draw(1)
        assert len({draw(seed) for seed in range(4)}) > 1


def test_a_plain_text_goes_on_without_the_template(checkpoint: Path) -> None:
    with open_runtime(checkpoint) as runtime:
        assert isinstance(runtime, TorchRuntime)
        said = answer(runtime, "The capital", GREEDY)
        assert said.prompt_tokens == len(runtime.tokenizer("The capital").input_ids)


def test_an_answer_ends_where_the_context_does_and_a_longer_prompt_is_refused(
    make_checkpoint: Callable[..., Path],
) -> None:
    with open_runtime(make_checkpoint(max_position_embeddings=32, eos_token_id=None)) as runtime:
        assert isinstance(runtime, TorchRuntime)
        endless = TorchRuntime(runtime.model, runtime.tokenizer, frozenset(), runtime.precision)
        said = answer(endless, CHAT, Sampling(max_new_tokens=100))
        assert said.prompt_tokens + said.tokens == 32
        assert said.reason == "length"
        with pytest.raises(CoreError, match="the model's context 32  → make it shorter"):
            answer(endless, [{"role": "user", "content": "tea " * 40}], GREEDY)
        with pytest.raises(CoreError, match="the prompt is empty"):
            answer(endless, "", GREEDY)


def test_a_character_in_several_tokens_comes_whole(checkpoint: Path) -> None:
    """Whatever the tokens: no piece ends in half a character that the next one completes."""
    with open_runtime(checkpoint) as runtime:
        assert isinstance(runtime, TorchRuntime)
        ids = runtime.tokenizer("東京 Zoë 🍵", add_special_tokens=False).input_ids

        class Scripted(TorchRuntime):
            def _tokens(self, *_: Any) -> Any:
                yield from (Drawn(id_) for id_ in ids)

        pieces: list[str] = []
        scripted = Scripted(runtime.model, runtime.tokenizer, frozenset(), runtime.precision)
        assert answer(scripted, CHAT, GREEDY, pieces.append).text == "東京 Zoë 🍵"
    assert len(ids) > len(pieces) > 3
    assert not any("\ufffd" in piece for piece in pieces)


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=20), st.floats(0.01, 1))
def test_the_nucleus_is_the_smallest_set_with_that_mass(weights: list[float], top_p: float) -> None:
    p_V = torch.tensor(weights, dtype=torch.float64)
    p_V /= p_V.sum()
    kept_V = nucleus(p_V, top_p)
    chosen = kept_V > 0
    assert torch.equal(kept_V[chosen], p_V[chosen])
    assert float(kept_V.sum()) >= top_p - 1e-9
    assert p_V[chosen].min() >= p_V[~chosen].max() if (~chosen).any() else True
    if int(chosen.sum()) > 1:  # without its least likely token it would be too small
        assert float(kept_V.sum() - p_V[chosen].min()) < top_p + 1e-9


@settings(deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.3, 1.0, 4.0]), st.floats(0.01, 1))
def test_the_nucleus_of_a_large_vocabulary_is_that_of_a_whole_sort(seed: int, spread: float, top_p: float) -> None:
    logits_V = torch.randn(2000, generator=torch.Generator().manual_seed(seed)).mul(10 * spread).round() / 10  # ties
    p_V = torch.softmax(logits_V.double(), -1)
    sorted_V, order_V = p_V.sort(descending=True, stable=True)
    kept = order_V[(sorted_V.cumsum(-1) - sorted_V) < top_p]
    assert set(nucleus(p_V, top_p).nonzero()[:, 0].tolist()) == {int(order_V[0]), *kept.tolist()}


def test_draws_follow_the_tempered_distribution() -> None:
    logits_V = torch.tensor([2.0, 1.0, 0.0, -1.0])
    draw = drawer(Sampling(temperature=0.5, seed=3), torch.device("cpu"))
    counts = torch.bincount(torch.tensor([draw(logits_V) for _ in range(4000)]), minlength=4) / 4000
    assert torch.allclose(counts, torch.softmax(logits_V / 0.5, -1), atol=0.03)
    assert drawer(Sampling(), torch.device("cpu"))(logits_V) == 0


def test_the_smallest_temperatures_take_the_likeliest() -> None:
    logits_V = torch.tensor([1.0, 30.0, 2.0, 0.0])
    for temperature in (1e-300, 1e-308, 5e-324):
        assert drawer(Sampling(temperature=temperature), torch.device("cpu"))(logits_V) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"seed": -1}, "seed"),
    ],
)
def test_sampling_that_makes_no_sense_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(CoreError, match=said):
        Sampling(**changes)


def _break(folder: Path, how: str) -> None:
    match how:
        case "no tokenizer":
            (folder / "tokenizer.json").unlink()
        case "no template":
            for file in folder.glob("chat_template*"):
                file.unlink()
            config = json.loads((folder / "tokenizer_config.json").read_text())
            config.pop("chat_template", None)
            (folder / "tokenizer_config.json").write_text(json.dumps(config))
        case "damaged tokenizer":
            (folder / "tokenizer.json").write_text("{")
        case "damaged config":
            (folder / "config.json").write_text("{")
        case "truncated weights":
            weights = folder / "model.safetensors"
            weights.write_bytes(weights.read_bytes()[:1000])
        case "fussy template":
            (folder / "chat_template.jinja").write_text("{{ raise_exception('no such turn') }}")
        case "dividing template":
            (folder / "chat_template.jinja").write_text("{{ 1 / (messages | length - 1) }}")
        case "another version":
            (folder / "training.json").write_text('{"version": 99}')


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("no tokenizer", "no tokenizer beside the weights  → copy tokenizer.json"),
        ("no template", "no chat template  → put a chat_template.jinja"),
        ("fussy template", "refuses this conversation .TemplateError: no such turn."),
        ("dividing template", "refuses this conversation .ZeroDivisionError"),
        ("damaged tokenizer", "its tokenizer can't be loaded"),
        ("damaged config", "config.json: can't be read"),
        ("truncated weights", "not a complete checkpoint"),
        ("another version", "checkpoint format 99"),
    ],
)
def test_what_is_damaged_is_told(checkpoint: Path, tmp_path: Path, how: str, said: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint, folder)
    _break(folder, how)
    with pytest.raises(CoreError, match=said), open_runtime(folder) as runtime:
        answer(runtime, CHAT, GREEDY)


def test_a_damaged_export_is_told(exports: Path, tmp_path: Path) -> None:
    shutil.copytree(exports / "hf", tmp_path / "hf")
    (tmp_path / "hf/model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CoreError, match="transformers can't load it"), open_runtime(tmp_path / "hf"):
        pass


def test_a_tokenizer_of_another_model_is_told(make_checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(CoreError, match="don't belong together"), open_runtime(make_checkpoint(vocab_size=100)):
        pass


def test_a_place_without_a_model_is_told(exports: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("tea")
    for place, said in (
        (tmp_path / "nowhere", "nothing there"),
        (tmp_path / "notes.txt", "a file, and no .gguf"),
        (tmp_path, "no model here"),
        (exports, "name one of them: hf, packed"),
    ):
        with pytest.raises(CoreError, match=said), open_runtime(place):
            pass


def test_the_model_is_the_checkpoints(checkpoint: Path) -> None:
    with open_runtime(checkpoint) as runtime:
        assert isinstance(runtime, TorchRuntime)
        ours = dict(runtime.model.named_parameters())
        assert all(torch.equal(value, ours[name]) for name, value in load_model(checkpoint).named_parameters())


def test_a_runs_folder_stands_for_its_latest_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    for step in (2, 10):
        shutil.copytree(checkpoint, tmp_path / f"checkpoints/step_{step}")
    (tmp_path / "checkpoints/step_2/config.json").write_text("damaged")
    with open_runtime(checkpoint) as one, open_runtime(tmp_path) as other:
        ids = one.encode("Tea is")
        assert torch.equal(one.logits(ids), other.logits(ids))
    with pytest.raises(CoreError, match="no GGUF file in its exports  → write one with `bitnet export"):
        open_and_close(tmp_path, kind="llamacpp")
    (tmp_path / "exports").mkdir()
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / "exports" / name).write_text("not one")
    with pytest.raises(CoreError, match=r"several GGUF files \(a.gguf, b.gguf\) in its exports  → name one of them"):
        open_and_close(tmp_path, kind="llamacpp")


def open_and_close(place: Path, kind: str) -> None:
    with open_runtime(place, kind=kind):
        pass
