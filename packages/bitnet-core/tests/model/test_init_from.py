"""Students started from a checkpoint and from scratch, and what is said when that can't be."""

import json
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM
from transformers.utils import logging

from bitnet_core.config.student import WEIGHT_QUANTISER_NAMES, StudentConfig, without_effect
from bitnet_core.errors import CoreError
from bitnet_core.model import BitNetKDEConfig, BitNetKDEForCausalLM, build_student, init_from
from bitnet_core.model.inference_copy import snapped
from bitnet_core.model.read_checkpoint import load_model
from bitnet_core.ternary.activation_quantiser import FakeQuantActivation
from bitnet_core.ternary.bitlinear import ternary_layers
from bitnet_core.ternary.ternary_linear import least_squares_log_scale
from bitnet_core.weight_format import start_problems

SHAPE: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "tie_word_embeddings": True,
}
SMALL: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
FULL_PRECISION: dict[str, Any] = {"quantise_weights": False, "activation_bits": 16}


@pytest.fixture
def teacher(tmp_path: Path) -> tuple[Path, LlamaForCausalLM]:
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE, rms_norm_eps=1e-4, rope_parameters={"rope_type": "default", "rope_theta": 777.0})
    model = LlamaForCausalLM(config).eval()
    model.generation_config.eos_token_id = [2, 7]
    model.save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher", model


@pytest.mark.parametrize("layers", [(), (0, 3), (2, 2, 1)])
def test_takes_the_chosen_layers_exactly(teacher: tuple[Path, LlamaForCausalLM], layers: tuple[int, ...]) -> None:
    folder, llama = teacher
    student = init_from(folder, StudentConfig(layers=layers, **FULL_PRECISION)).eval()
    chosen = layers or (0, 1, 2, 3)
    assert len(student.model.layers) == student.config.num_hidden_layers == len(chosen)
    llama.model.layers = torch.nn.ModuleList(llama.model.layers[index] for index in chosen)
    llama.config.num_hidden_layers = len(chosen)
    ids = torch.arange(3, 20)[None]
    torch.testing.assert_close(
        student(ids, use_cache=False).logits, llama(ids, use_cache=False).logits, rtol=0, atol=1e-5
    )
    pointers = [parameter.data_ptr() for parameter in student.parameters()]
    assert len(set(pointers)) == len(pointers)  # a layer chosen twice is two layers


@pytest.mark.parametrize("sublayer_norm", [False, True])
def test_a_hadamard_transform_changes_nothing_at_the_start(
    teacher: tuple[Path, LlamaForCausalLM], tmp_path: Path, sublayer_norm: bool
) -> None:
    settings: dict[str, Any] = {"layers": (0, 1), "quantise_weights": False, "sublayer_norm": sublayer_norm}
    ids = torch.arange(3, 20)[None]
    plain = init_from(teacher[0], StudentConfig(**settings, activation_bits=16)).eval()(ids).logits
    student = init_from(teacher[0], StudentConfig(**settings, activation_bits=16, hadamard=True)).eval()
    torch.testing.assert_close(student(ids).logits, plain, rtol=1e-5, atol=1e-5)
    student.save_pretrained(tmp_path / "student")  # turned once: not again, and turned back where it is not wanted
    for hadamard in (True, False):
        settings["layers"] = ()
        again = init_from(tmp_path / "student", StudentConfig(**settings, activation_bits=16, hadamard=hadamard))
        torch.testing.assert_close(again.eval()(ids).logits, plain, rtol=1e-5, atol=1e-5)


def test_a_hadamard_transform_takes_outputs_to_four_bits(teacher: tuple[Path, LlamaForCausalLM]) -> None:
    for hadamard, bits in ((False, 8), (True, 4)):
        student = init_from(teacher[0], StudentConfig(layers=(0,), hadamard=hadamard))
        student.set_activation_bits(4)
        found = [module.bits for module in student.modules() if isinstance(module, FakeQuantActivation)]
        assert sorted(found) == sorted([4, bits, 4, bits])
        if hadamard:  # the scales fit the turned weights
            down = student.model.layers[0].mlp.down_proj
            torch.testing.assert_close(down.log_scale.detach(), least_squares_log_scale(down.weight))


@pytest.mark.parametrize("name", WEIGHT_QUANTISER_NAMES)
def test_every_quantiser_starts_saves_and_comes_back(
    teacher: tuple[Path, LlamaForCausalLM], tmp_path: Path, name: str
) -> None:
    student = init_from(teacher[0], StudentConfig(layers=(0, 3), weight_quantiser=name)).eval()
    student.save_pretrained(tmp_path / "student")
    again = BitNetKDEForCausalLM.from_pretrained(tmp_path / "student").eval()
    ids = torch.arange(3, 20)[None]
    assert torch.equal(again(ids).logits, student(ids).logits)
    assert all(0 < (layer.codes() != 0).float().mean() < 1 for _, layer in ternary_layers(again))


def test_scales_are_the_least_squares_fit(teacher: tuple[Path, LlamaForCausalLM]) -> None:
    folder, llama = teacher
    student = init_from(folder, StudentConfig(layers=(3, 1)))
    assert student.config.activation_bits == 8
    assert len(list(ternary_layers(student))) == 14
    weight = llama.model.layers[3].mlp.up_proj.weight
    assert torch.equal(student.model.layers[0].mlp.up_proj.weight, weight)
    torch.testing.assert_close(student.model.layers[0].mlp.up_proj.log_scale.detach(), least_squares_log_scale(weight))
    assert all(parameter.dtype == torch.float32 for parameter in student.parameters())
    assert student.generation_config.eos_token_id == [2, 7]
    assert student.lm_head.weight is student.model.embed_tokens.weight


def test_a_student_keeps_its_learned_scales(teacher: tuple[Path, LlamaForCausalLM], tmp_path: Path) -> None:
    student = init_from(teacher[0], StudentConfig(layers=(0, 1), sublayer_norm=True))
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "log_scale" in name or "sub_norm" in name:
                parameter.add_(0.1)
    student.save_pretrained(tmp_path / "student")
    again = init_from(tmp_path / "student", StudentConfig(sublayer_norm=True))
    for (name, ours), (_, theirs) in zip(student.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    with pytest.raises(CoreError, match=r"has SubLN norms  → set sublayer_norm = true under \[student\]"):
        init_from(tmp_path / "student", StudentConfig())


def test_mistral_without_a_window_is_llama_shaped(tmp_path: Path) -> None:
    torch.manual_seed(1)
    mistral = MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=None)).eval()
    mistral.save_pretrained(tmp_path)
    student = init_from(tmp_path, StudentConfig(**FULL_PRECISION)).eval()
    ids = torch.arange(3, 20)[None]
    torch.testing.assert_close(student(ids).logits, mistral(ids).logits, rtol=0, atol=1e-5)


def rewrite_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_cannot_start_a_student_is_named(teacher: tuple[Path, LlamaForCausalLM], tmp_path: Path) -> None:
    folder, _ = teacher
    with pytest.raises(CoreError, match=r"there is no config.json in .*nowhere"):
        init_from(tmp_path / "nowhere", StudentConfig())
    with pytest.raises(CoreError, match=r"student.layers: .*teacher has layers 0 to 3; 4, 9 are not among them"):
        init_from(folder, StudentConfig(layers=(1, 4, 9)))
    GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=10)).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(
        CoreError, match=r"its model_type is 'gpt2'  → set student.architecture = \"teacher's\", which takes any"
    ):
        init_from(tmp_path / "gpt2", StudentConfig())
    rewrite_config(folder, hidden_act="gelu")
    with pytest.raises(CoreError, match="its activation is 'gelu', not one of silu, relu2"):
        init_from(folder, StudentConfig())
    rewrite_config(folder, hidden_act="silu", model_type="mistral", sliding_window=8)
    with pytest.raises(CoreError, match="sliding window of 8 tokens"):
        init_from(folder, StudentConfig())
    rewrite_config(folder, model_type="no_such_model")
    with pytest.raises(CoreError, match=r"can't start a student: its model_type is 'no_such_model'"):
        init_from(folder, StudentConfig())
    (folder / "config.json").write_text("{")
    with pytest.raises(CoreError, match=r"config.json can't be read"):
        init_from(folder, StudentConfig())


@pytest.mark.parametrize("damage", ["missing", "cut", "another shape", "a tensor less"])
def test_unreadable_weights_are_named(teacher: tuple[Path, LlamaForCausalLM], damage: str) -> None:
    folder, _ = teacher
    weights = folder / "model.safetensors"
    if damage == "missing":
        weights.unlink()
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "another shape":
        rewrite_config(folder, intermediate_size=128)
    else:
        tensors = load_file(weights)
        del tensors["model.layers.1.mlp.up_proj.weight"]
        save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(CoreError, match=r"the weights in .*teacher can't be (read|used): "):
        init_from(folder, StudentConfig())


SCRATCH = StudentConfig(
    init_from="",
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    rope_theta=500.0,
)


def test_from_scratch_depends_on_the_seed_alone() -> None:
    torch.manual_seed(5)
    first = build_student(SCRATCH, None, 50, eos_token_id=2, pad_token_id=2, seed=1)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after)  # the caller's generator is left alone
    second, other = (build_student(SCRATCH, None, 50, eos_token_id=2, pad_token_id=2, seed=seed) for seed in (1, 2))
    assert isinstance(first, BitNetKDEForCausalLM)
    assert first.training
    assert (first.config.vocab_size, first.config.eos_token_id) == (50, 2)
    assert first.config.rope_parameters["rope_theta"] == 500.0
    for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(first.model.embed_tokens.weight, other.model.embed_tokens.weight)
    for _, layer in ternary_layers(first):
        torch.testing.assert_close(layer.log_scale.detach(), least_squares_log_scale(layer.weight))


def test_build_student_opens_the_teacher_or_a_folder(teacher: tuple[Path, LlamaForCausalLM]) -> None:
    folder, _ = teacher
    for config, given in [
        (StudentConfig(layers=(1,)), folder),
        (StudentConfig(init_from=str(folder), layers=(1,)), None),
    ]:
        assert len(build_student(config, given, 49).model.layers) == 1
    assert build_student(StudentConfig(init_from=str(folder))).config.vocab_size == 50
    with pytest.raises(CoreError, match="random weights need vocab_size"):
        build_student(SCRATCH)
    with pytest.raises(CoreError, match="this teacher's weights are not here"):
        build_student(StudentConfig(), None, 50)
    with pytest.raises(CoreError, match="the checkpoint knows 50 tokens, the student's tokenizer has 51"):
        build_student(StudentConfig(), folder, 51)


def test_frozen_embeddings_get_no_gradient(teacher: tuple[Path, LlamaForCausalLM]) -> None:
    student = build_student(StudentConfig(freeze_embeddings=True, layers=(0,)), teacher[0], 50)
    frozen = [name for name, parameter in student.named_parameters() if not parameter.requires_grad]
    assert frozen == ["model.embed_tokens.weight"]
    student(torch.arange(3, 9)[None]).logits.square().mean().backward()
    assert student.model.embed_tokens.weight.grad is None
    assert student.model.layers[0].self_attn.q_proj.weight.grad is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 5}, "hidden_size = 512 is not a multiple of num_attention_heads = 5; .*"),
        ({"num_key_value_heads": 3}, "num_attention_heads = 8 is not a multiple of num_key_value_heads = 3"),
        ({"head_dim": 7}, "head_dim = 7 must be even and above 0 .*"),
        ({"hidden_size": 8}, "hidden_size / num_attention_heads = 1 must be even .*"),
        ({"layers": (1,)}, 'layers chooses from init_from, which is "": .*'),
        ({"hidden_size": 0}, "'hidden_size' must be > 0: 0"),
        ({"activation_bits": 3}, "activation_bits = 3 must be 16 \\(off\\), 8 or 4"),
        ({"init_from": "teacher", "layers": (0, -1)}, "layers counts from 0; -1 is below it"),
    ],
)
def test_a_wrong_student_table_says_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        StudentConfig(**{"init_from": "", **changes})


def test_sizes_are_not_looked_at_when_a_checkpoint_gives_them_and_that_is_said() -> None:
    assert without_effect(StudentConfig(layers=(0, 1))) == []
    assert without_effect(StudentConfig(init_from="", num_hidden_layers=4)) == []
    (said,) = without_effect(StudentConfig(num_attention_heads=5, tie_word_embeddings=False))
    assert said.startswith("student.num_attention_heads = 5, student.tie_word_embeddings = False: without effect, ")


@pytest.mark.parametrize(("own", "tied"), [(True, False), (False, True)])
def test_a_head_of_its_own_stays_whatever_the_config_says(tmp_path: Path, own: bool, tied: bool) -> None:
    """Adapters that were merged leave a config that calls embedding and head tied, and a file with both."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**(SHAPE | {"tie_word_embeddings": False})))
    if not own:
        with torch.no_grad():
            model.lm_head.weight.copy_(model.model.embed_tokens.weight)
    model.save_pretrained(tmp_path / "start")
    file = tmp_path / "start/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tie_word_embeddings": True}))
    student = init_from(tmp_path / "start", StudentConfig(**FULL_PRECISION))
    assert student.config.tie_word_embeddings is tied
    assert torch.equal(student.lm_head.weight, model.lm_head.weight)
    student.save_pretrained(tmp_path / "student")
    again = load_model(tmp_path / "student")
    assert again.config.tie_word_embeddings is tied
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def test_a_checkpoint_of_before_that_lies_about_its_head_is_read_right(tmp_path: Path) -> None:
    student = build_student(StudentConfig(init_from="", **SMALL, tie_word_embeddings=False), None, 50)
    student.save_pretrained(tmp_path / "old")
    file = tmp_path / "old/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tie_word_embeddings": True}))
    again = load_model(tmp_path / "old")
    assert not again.config.tie_word_embeddings
    assert torch.equal(again.lm_head.weight, student.lm_head.weight)


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(
    hidden=st.integers(1, 12).map(lambda n: n * 8),
    heads=st.integers(1, 8),
    kv_heads=st.integers(1, 8),
    head_dim=st.none() | st.integers(1, 16),
    kind=st.sampled_from(["llama", "qwen3", "mistral"]),
)
def test_what_starts_can_be_saved(hidden: int, heads: int, kv_heads: int, head_dim: int | None, kind: str) -> None:
    """Of any sizes: refused by config.json alone, or a model that transformers builds, runs and writes."""
    sizes = {"hidden_size": hidden, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim}
    if start_problems({"model_type": kind} | sizes):
        with pytest.raises(ValueError, match=r"multiple of|must be even"):
            StudentConfig(init_from="", **sizes)
        return
    small: dict[str, Any] = {"vocab_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    model = build_student(StudentConfig(init_from="", intermediate_size=8, num_hidden_layers=1, **sizes), None, 8)
    assert model(torch.tensor([[1, 2]])).logits.shape == (1, 2, 8)
    config = BitNetKDEConfig(**small, **sizes)
    config.validate()


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_heads_that_do_not_divide_the_width_are_refused(tmp_path: Path, kind: str) -> None:
    config = SHAPE | {"model_type": kind, "num_attention_heads": 6, "num_key_value_heads": 4, "head_dim": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    told = "hidden_size = 32 is not a multiple of num_attention_heads = 6; num_attention_heads = 6 is not a multiple of"
    with pytest.raises(CoreError, match=told):
        init_from(tmp_path, StudentConfig())


def test_transformers_bars_never_show(
    teacher: tuple[Path, LlamaForCausalLM], checkpoint: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    were_on = logging.is_progress_bar_enabled()
    logging.enable_progress_bar()  # as in a program that has not turned them off
    try:
        build_student(StudentConfig(init_from=str(teacher[0])))
        snapped(load_model(checkpoint))
        assert logging.is_progress_bar_enabled(), "a user's own loading shows them"
    finally:
        if not were_on:
            logging.disable_progress_bar()
    assert capfd.readouterr() == ("", "")
