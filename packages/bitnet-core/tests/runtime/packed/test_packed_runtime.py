"""The packed runtime against the torch runtime and the model itself, and what it can't open."""

import json
import logging
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DynamicCache

from bitnet_core.config.export import HFOptions, PackedOptions
from bitnet_core.errors import CoreError
from bitnet_core.export.check import kl, log_probabilities
from bitnet_core.export.folder import export
from bitnet_core.export.hf import hf_exporter
from bitnet_core.export.packed import packed_exporter
from bitnet_core.kernels.compile import instruction_sets
from bitnet_core.model import BitNetKDEConfig, BitNetKDEForCausalLM
from bitnet_core.model.inference_copy import snapped
from bitnet_core.model.read_checkpoint import load_model
from bitnet_core.runtime.contract import Sampling, answer
from bitnet_core.runtime.open import open_runtime
from bitnet_core.runtime.packed import packed_runtime as packed_runtime
from bitnet_core.runtime.packed.cpu import CHUNK, CpuEngine, int8_rows
from bitnet_core.runtime.packed.load_weights import packed_weights
from bitnet_core.runtime.packed.packed_runtime import PackedRuntime, open_packed
from bitnet_core.runtime.torch_runtime import TorchRuntime, open_torch
from bitnet_core.ternary.activation_quantiser import FakeQuantActivation, activation_codes
from bitnet_core.ternary.packed_linear import PackedBitLinear

CHAT = [{"role": "user", "content": "The capital of France is"}]
GREEDY = Sampling(max_new_tokens=12)
IDS = torch.randint(3, 380, (CHUNK + 22,), generator=torch.Generator().manual_seed(0)).tolist()
MARGIN = 2**-12
"""Of a code. Codes go to 127, so float32 may be off by 32 roundings (of 2**-24); torch was seen off by up to 20."""
EVERYTHING = {
    "sublayer_norm": True, "hadamard": True, "qk_norm": True, "qkv_bias": True, "mlp_bias": True,
    "attention_bias": True, "hidden_size": 198, "head_dim": 20, "num_attention_heads": 6, "num_key_value_heads": 3,
    "intermediate_size": 330, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def exports(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exports")
    export(checkpoint, {"packed": packed_exporter(PackedOptions()), "hf": hf_exporter(HFOptions())}, out)
    return out


def exact_head(folder: Path) -> Path:
    """The checkpoint with 8-bit tables that bfloat16 holds, so that its head is the packed runtime's."""
    model = load_model(folder)
    for table in (model.model.embed_tokens.weight, model.lm_head.weight):
        step = 2.0 ** float((table.detach().abs().max() / 127).log2().ceil())
        codes_VD = (table.detach() / step).round()
        codes_VD[:, ::32] = 127.0  # so that each block's scale is the step
        table.data = codes_VD * step
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def without_ties(model: BitNetKDEForCausalLM, length: int) -> list[int]:
    """Tokens after each of which every activation of `model`, in float64, is `MARGIN` away from a rounding tie."""
    away: list[Tensor] = []

    def look(quantiser: FakeQuantActivation, inputs: tuple[Tensor]) -> None:
        _, scale_BT1 = activation_codes(inputs[0], quantiser.bits)
        away.append((inputs[0] / scale_BT1 % 1 - 0.5).abs().amin((1, 2)))

    hooks = [each.register_forward_pre_hook(look) for each in model.modules() if isinstance(each, FakeQuantActivation)]
    generator, cache, ids = torch.Generator().manual_seed(0), DynamicCache(config=model.config), []
    while len(ids) < length:
        tried_B1 = torch.randint(3, 380, (8, 1), generator=generator)
        away.clear()
        model(tried_B1, cache=cache, use_cache=True)
        found = (torch.stack(away).amin(0) > MARGIN).nonzero()[:1, 0]
        if len(found):
            ids.append(int(tried_B1[found]))
            cache.reorder_cache(found.expand(8))
        else:
            cache.crop(-1)
    for hook in hooks:
        hook.remove()
    return ids


@pytest.fixture(scope="module")
def without_chance(
    request: pytest.FixtureRequest, make_checkpoint: Callable[..., Path]
) -> tuple[Path, list[int], NDArray[np.float64]]:
    """A student, a text without rounding ties, and log p [T, V] of that in float64."""
    folder = exact_head(make_checkpoint(**request.param))
    model = snapped(load_model(folder)).double()
    ids = without_ties(model, CHUNK + 8)
    return folder, ids, log_probabilities(model, ids, model.config.activation_bits)


@pytest.mark.slow
@pytest.mark.parametrize("instruction_set", instruction_sets())
@pytest.mark.parametrize(
    "without_chance",
    [
        {},
        {"activation_bits": 4},
        EVERYTHING,
        EVERYTHING | {"activation_bits": 4, "num_key_value_heads": 6},
        {"num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 72, "rope_parameters": LLAMA3},
        {"hidden_act": "relu2", "sublayer_norm": True},
    ],
    ids=["llama", "A4", "every switch", "every switch, A4", "eight queries a key, llama3's rope", "squared ReLU"],
    indirect=True,
)
def test_the_model_is_the_same_within_rounding_ties(
    without_chance: tuple[Path, list[int], NDArray[np.float64]], instruction_set: str
) -> None:
    """Where no activation lies near a tie, the integers are the same and float32's rounding alone is left.

    Near one, any two orders of operation may differ by a code, and what that does to the answer has no bound that a
    wrong kernel would break: on the tests' usual text it is 1e-5 to 2e-4 nats, by the machine.
    """
    folder, ids, ours_TV = without_chance
    engine = CpuEngine(packed_weights(folder), head="bf16", instruction_set=instruction_set)
    theirs_TV = torch.log_softmax(engine.logits(ids).double(), -1).numpy()
    np.testing.assert_allclose(theirs_TV, ours_TV, rtol=0, atol=1e-4)


def test_an_int8_head_costs_little_beside_int8_activations(make_checkpoint: Callable[..., Path]) -> None:
    folder = make_checkpoint()
    model = snapped(load_model(folder))
    cost = kl(log_probabilities(model, IDS, 16), log_probabilities(model, IDS, 8))
    exact, rounded = (
        torch.log_softmax(CpuEngine(packed_weights(folder), head=head).logits(IDS).double(), -1).numpy()
        for head in ("bf16", "int8")
    )
    assert 0 < kl(exact, rounded) < cost / 4


def test_tokens_one_by_one_or_together_give_the_same(checkpoint: Path) -> None:
    weights = packed_weights(checkpoint)
    whole, steps = CpuEngine(weights).logits(IDS[:40]), CpuEngine(weights)
    for count in range(1, 41):
        torch.testing.assert_close(steps.logits(IDS[:count], last=1)[0], whole[count - 1], rtol=1e-5, atol=1e-5)


def test_another_sequence_with_the_same_beginning_is_computed_rightly(checkpoint: Path) -> None:
    weights = packed_weights(checkpoint)
    used = CpuEngine(weights)
    used.logits(IDS)
    for ids in ([*IDS[:30], 7, 8, 9], IDS[:5], IDS[1:9], IDS):
        fresh = CpuEngine(weights)
        torch.testing.assert_close(used.logits(ids, last=3), fresh.logits(ids)[-3:], rtol=1e-5, atol=1e-5)


def test_a_sequence_beyond_the_context_is_refused(checkpoint: Path) -> None:
    engine = CpuEngine(packed_weights(checkpoint), context=16)
    assert engine.logits(IDS[:16]).shape == (16, 400)
    for ids, last in ((IDS[:17], None), ([], None), (IDS[:3], 4), (IDS[:3], 0)):
        with pytest.raises(CoreError, match="this context has 16"):
            engine.logits(ids, last)


def test_greedy_text_is_the_torch_runtimes(checkpoint: Path, exports: Path) -> None:
    with open_torch(checkpoint, 8, precision="fp32") as runtime:
        wanted = answer(runtime, CHAT, GREEDY)
    for place in (checkpoint, exports / "packed"):
        with open_runtime(place, kind="packed") as packed:
            assert isinstance(packed, PackedRuntime)
            assert packed.description.startswith(f"packed, {instruction_sets()[0]} on cpu")
            said = answer(packed, CHAT, GREEDY)
            assert (said.text, said.tokens, said.reason) == (wanted.text, wanted.tokens, wanted.reason)
            assert answer(packed, CHAT, GREEDY).text == said.text  # from the cache


def test_one_seed_one_answer_and_another_another(checkpoint: Path) -> None:
    with open_runtime(checkpoint, kind="packed") as runtime:
        texts = [
            answer(runtime, CHAT, Sampling(max_new_tokens=20, temperature=1.5, seed=seed)).text for seed in (1, 1, 2)
        ]
    assert texts[0] == texts[1] != texts[2]


def test_the_torch_runtime_shows_its_logits_too(checkpoint: Path) -> None:
    with open_torch(checkpoint, 8, precision="fp32") as runtime:
        with torch.no_grad():
            wanted_TV = runtime.model(torch.tensor([IDS[:20]])).logits[0]
        for ids, last in ((IDS[:8], None), (IDS[:20], 12), (IDS[:20], None), (IDS[1:4], 1)):
            found = runtime.logits(ids, last)
            assert len(found) == (last or len(ids))
            if ids[0] == IDS[0]:
                torch.testing.assert_close(found, wanted_TV[len(ids) - len(found) : len(ids)], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("compiler", ["none", "broken"])
def test_without_a_compiler_torch_runs_it_and_one_line_says_so(
    checkpoint: Path,
    compiler: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("BITNET_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "false" if compiler == "broken" else "no-such-compiler")
    with caplog.at_level(logging.WARNING), open_packed(checkpoint) as runtime:
        assert isinstance(runtime, TorchRuntime)
        text = answer(runtime, CHAT, GREEDY).text
    (record,) = [each for each in caplog.records if each.name.startswith("bitnet_core.runtime")]
    said = record.getMessage()
    assert said.startswith("the runtime packed falls back to torch")
    assert ("no C++ compiler" if compiler == "none" else "false can't compile") in said
    assert "apt install g++" in said
    assert "\n" not in said
    monkeypatch.undo()
    with open_packed(checkpoint) as packed:
        assert answer(packed, CHAT, GREEDY).text == text


def test_a_packed_export_is_memory_mapped(exports: Path) -> None:
    weights = packed_weights(exports / "packed")
    name = str((exports / "packed/model.safetensors").resolve())
    mapped = [line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines() if name in line]
    for tensor in weights.tensors.values():
        assert any(int(start, 16) <= tensor.data_ptr() < int(end, 16) for start, end in mapped)
    assert weights.tensors["model.layers.0.mlp.up_proj.codes"].dtype == torch.uint8


def test_a_7b_takes_at_most_1700_megabytes() -> None:
    """Llama 2 7B's shape, as the packed export stores it: codes, and row scales in float16."""
    config = BitNetKDEConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=32, packed=True,
    )  # fmt: skip
    with torch.device("meta"):
        layers = [m for m in BitNetKDEForCausalLM(config).modules() if isinstance(m, PackedBitLinear)]
    assert sum(layer.in_features * layer.out_features for layer in layers) == 6_476_005_376
    assert sum(layer.codes.numel() + 2 * layer.row_scale.numel() for layer in layers) <= 1.70e9


def _damage(folder: Path, how: str) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    match how:
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:-1000])
        case "no weights":
            weights.unlink()
        case "another shape":
            config.write_text(json.dumps(json.loads(config.read_text()) | {"intermediate_size": 256}))
        case "a layer more":
            config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": 3}))
        case "no config":
            config.write_text("{")
        case "a word for a size":
            config.write_text(json.dumps(json.loads(config.read_text()) | {"hidden_size": "abc"}))
        case "a size below zero":
            config.write_text(json.dumps(json.loads(config.read_text()) | {"hidden_size": -4}))
        case "codes as floats":
            tensors = load_file(weights)
            name = "model.layers.0.mlp.up_proj.codes"
            save_file(tensors | {name: tensors[name].half()}, weights)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("truncated", "model.safetensors: not a complete export .*export the checkpoint again"),
        ("no weights", "model.safetensors: not a complete export"),
        ("another shape", "other tensors than config.json calls for: model.layers.0.mlp"),
        ("a layer more", "other tensors than config.json calls for: model.layers.2"),
        ("no config", "config.json: can't be read"),
        ("a size below zero", "config.json: not a complete export"),
        ("codes as floats", "other tensors than config.json calls for: model.layers.0.mlp.up_proj.codes"),
    ],
)
def test_what_is_damaged_is_told(exports: Path, tmp_path: Path, how: str, said: str) -> None:
    shutil.copytree(exports / "packed", tmp_path / "packed")
    _damage(tmp_path / "packed", how)
    with pytest.raises(CoreError, match=said), open_runtime(tmp_path / "packed", kind="packed"):
        pass


@pytest.mark.parametrize("read", [packed_weights, load_model])
def test_a_word_for_a_size_is_told(checkpoint: Path, tmp_path: Path, read: Callable[[Path], Any]) -> None:
    shutil.copytree(checkpoint, tmp_path / "step_7")
    _damage(tmp_path / "step_7", "a word for a size")
    with pytest.raises(CoreError, match=r"(?s)config.json: not a complete checkpoint .*hidden_size"):
        read(tmp_path / "step_7")


def test_heads_that_do_not_divide_are_refused(checkpoint: Path) -> None:
    """The C++ would leave some of them out."""
    weights = packed_weights(checkpoint)
    weights.config.num_attention_heads, weights.config.num_key_value_heads = 6, 4
    with pytest.raises(CoreError, match="6 attention heads and 4 of keys and values"):
        CpuEngine(weights)


@pytest.mark.parametrize("id_", [-1, 400])
def test_an_id_that_is_no_token_is_refused_and_the_engine_goes_on(checkpoint: Path, id_: int) -> None:
    engine = CpuEngine(packed_weights(checkpoint))
    before_V = engine.logits(IDS[:5], last=1)[0]
    with pytest.raises(CoreError, match=f"token {id_}: the model knows 0 to 399"):
        engine.logits([*IDS[:5], id_])
    torch.testing.assert_close(engine.logits(IDS[:5], last=1)[0], before_V)


def test_two_engines_at_once_do_not_meet(checkpoint: Path) -> None:
    weights, ids = packed_weights(checkpoint), IDS[:24]
    whole_TV = CpuEngine(weights).logits(ids)

    def steps(_: int) -> torch.Tensor:
        engine = CpuEngine(weights)
        return torch.cat([engine.logits(ids[:count], last=1) for count in range(1, len(ids) + 1)])

    with ThreadPoolExecutor(3) as threads:
        for found_TV in threads.map(steps, range(3)):
            torch.testing.assert_close(found_TV, whole_TV, rtol=1e-5, atol=1e-5)


def test_a_gpu_without_triton_is_left_alone_and_one_line_says_so(
    exports: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("BITNET_CPU", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(packed_runtime, "find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING), open_packed(exports / "packed") as runtime:
        assert isinstance(runtime, PackedRuntime)
        assert runtime.engine.device.type == "cpu"
    assert "there is no Triton" in caplog.text


def test_an_interrupted_pass_leaves_nothing_that_the_torch_runtime_goes_on_from(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_torch(checkpoint, 8, precision="fp32") as runtime:
        wanted_V = runtime.logits(IDS[:12], 1)[0]
        runtime.logits(IDS[:8])
        layer = runtime.model.model.layers[1]
        with monkeypatch.context() as patch:
            patch.setattr(layer, "forward", interrupt)
            with pytest.raises(KeyboardInterrupt):
                runtime.logits(IDS[:10], 1)
        torch.testing.assert_close(runtime.logits(IDS[:12], 1)[0], wanted_V, rtol=1e-4, atol=1e-4)


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_what_it_has_no_words_for_is_refused_with_the_reason(
    make_checkpoint: Callable[..., Path], exports: Path, tmp_path: Path
) -> None:
    dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    (tmp_path / "student.gguf").write_bytes(b"GGUF")
    for place, bits, said in (
        (make_checkpoint(), 16, "integer activations, 8 or 4 bits, not 16"),
        (make_checkpoint(rope_parameters=dynamic), None, 'rope_type = "dynamic"'),
        (make_checkpoint(quantise_weights=False, activation_bits=8), None, "its weights are not ternary"),
        (exports / "hf", None, "for this project's students"),
        (tmp_path / "student.gguf", None, "llama.cpp runs this file"),
    ):
        with pytest.raises(CoreError, match=said), open_runtime(place, bits=bits, kind="packed"):
            pass


def test_the_heads_integers_are_within_half_a_step() -> None:
    weight_VD = torch.randn(5000, 40, generator=torch.Generator().manual_seed(0))
    weight_VD[7] = 0
    codes_VW, scale_V = int8_rows(weight_VD, 48)
    assert codes_VW.shape == (5000, 48)
    assert not codes_VW[:, 40:].any()
    assert not codes_VW[7].any()
    assert ((codes_VW[:, :40] * scale_V[:, None] - weight_VD).abs() <= scale_V[:, None] * 0.5001).all()
