"""GGUF files in llama.cpp itself: its distributions, its tokens, a chat through its server."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from bitnet_core.config.export import GGUFOptions
from bitnet_core.errors import CoreError
from bitnet_core.export.check import check_exports
from bitnet_core.export.folder import export
from bitnet_core.export.gguf import write as gguf_write
from bitnet_core.export.gguf.write import gguf_exporter
from bitnet_core.export.load_student import load_student
from bitnet_core.runtime.llamacpp.server import llama_cpp

LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 64,
    "long_factor": [1 + 0.25 * i for i in range(32)], "short_factor": [1 + 0.05 * i for i in range(32)],
}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
ROTARY = {
    "yarn": {"rope_parameters": YARN},
    "yarn, its own attention": {"rope_parameters": YARN | {"attention_factor": 1.3, "beta_fast": 16, "beta_slow": 2}},
    "yarn, not truncated": {"rope_parameters": YARN | {"truncate": False}},
    "yarn of qwen2": {"qkv_bias": True, "rope_parameters": YARN},
    "yarn of subln": {"sublayer_norm": True, "rope_parameters": YARN},
    "linear of qwen3": {"qk_norm": True, "rope_parameters": LINEAR},
    "linear of subln": {"sublayer_norm": True, "rope_parameters": LINEAR},
    "longrope": {"rope_parameters": LONGROPE},
    "longrope, short": {"rope_parameters": LONGROPE | {"original_max_position_embeddings": 256}},
    "dynamic": {"rope_parameters": DYNAMIC},
}  # fmt: skip
PADDED = {"hidden_size": 288, "intermediate_size": 320, "num_attention_heads": 9, "num_key_value_heads": 3}
STUDENTS = {
    "plain": {"activation_bits": 4},
    "padded": PADDED,
    "untied, biases, padded": PADDED | {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True},
    "subln, padded": {"sublayer_norm": True, "hidden_size": 192, "intermediate_size": 256, "num_attention_heads": 6},
    "qwen2": {"qkv_bias": True},
    "qwen2, padded": PADDED | {"qkv_bias": True, "tie_word_embeddings": False},
    "qwen3": {"qk_norm": True},
    "qwen3, padded but for hidden": {
        "qk_norm": True, "head_dim": 96, "intermediate_size": 320, "num_attention_heads": 2, "num_key_value_heads": 2,
    },
    "wide heads, llama3 rope": {"head_dim": 128, "rope_parameters": LLAMA3_ROPE},
}  # fmt: skip


def write(checkpoint: Path, out: Path, *types: Any) -> None:
    export(checkpoint, {"gguf": gguf_exporter(GGUFOptions(types=types))}, out)


@pytest.mark.slow
@pytest.mark.parametrize("switches", STUDENTS.values(), ids=STUDENTS)
def test_llama_cpp_computes_the_student(make_checkpoint: Any, tmp_path: Path, switches: dict[str, Any]) -> None:
    checkpoint = make_checkpoint(**switches)
    write(checkpoint, tmp_path, "q2_0", "tq2_0", "tq1_0", "f16", "f32")
    figures = check_exports(checkpoint, tmp_path, tokens=12)
    assert [figure for figure in figures if not figure.passed] == []
    of_int8 = [each.value for each in figures if each.target.endswith("q2_0.gguf") and each.unit == "nats"]
    of_f32 = [each.value for each in figures if each.target == "student-f32.gguf" and each.unit == "nats"]
    # The bars would let a file pass that isn't quantised at all; these are.
    assert min(of_int8) > 10 * max(of_f32)


@pytest.mark.slow
@pytest.mark.parametrize("switches", ROTARY.values(), ids=ROTARY)
def test_llama_cpp_turns_as_the_student_does(make_checkpoint: Any, tmp_path: Path, switches: dict[str, Any]) -> None:
    checkpoint = make_checkpoint(**switches)
    write(checkpoint, tmp_path, "f32")
    assert [figure for figure in check_exports(checkpoint, tmp_path, tokens=8) if not figure.passed] == []
    plain = make_checkpoint(**switches | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}})
    write(plain, tmp_path / "plain", "f32")
    (tmp_path / "plain/student-f32.gguf").replace(tmp_path / "student-f32.gguf")
    wrong = [each.what for each in check_exports(checkpoint, tmp_path, tokens=8) if not each.passed]
    kind = switches["rope_parameters"]["rope_type"]
    assert wrong == ([] if kind == "dynamic" else ["KL to the student without activation quantisation"])


@pytest.mark.slow
@pytest.mark.parametrize("switch", [None, "qkv_bias", "qk_norm", "sublayer_norm"])
def test_llama_cpps_graphs_of_these_architectures_take_no_sliding_window(
    make_checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, switch: str | None
) -> None:
    add_shape = gguf_write._add_shape

    def with_window(writer: Any, *shape: Any) -> None:
        add_shape(writer, *shape)
        writer.add_sliding_window(4)

    monkeypatch.setattr(gguf_write, "_add_shape", with_window)
    checkpoint = make_checkpoint(**({} if switch is None else {switch: True}))
    write(checkpoint, tmp_path, "f32")
    fields = gguf.GGUFReader(tmp_path / "student-f32.gguf").fields
    assert [name for name in fields if name.endswith(".attention.sliding_window")]
    # The student attends to everything, and so does llama.cpp: a window can't be asked of it.
    assert [figure for figure in check_exports(checkpoint, tmp_path, tokens=16) if not figure.passed] == []


def test_what_padding_added_is_zero_and_counts(make_checkpoint: Any, tmp_path: Path) -> None:
    write(make_checkpoint(**PADDED), tmp_path, "tq2_0")
    reader = gguf.GGUFReader(tmp_path / "student-tq2_0.gguf")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    down = gguf.quants.dequantize(tensors["blk.0.ffn_down.weight"].data, tensors["blk.0.ffn_down.weight"].tensor_type)
    assert down.shape == (512, 512)
    assert not down[288:].any()
    assert not down[:, 320:].any()
    assert np.unique(np.abs(down[5])).size == 2  # zero and the row's scale
    eps = reader.fields["llama.attention.layer_norm_rms_epsilon"].parts[-1][0]
    assert eps == pytest.approx(1e-5 * 288 / 512)
    assert tensors["token_embd.weight"].tensor_type == gguf.GGMLQuantizationType.Q8_0


def test_the_table_in_the_file_is_the_students(make_checkpoint: Any, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(**PADDED)
    write(checkpoint, tmp_path, "tq2_0")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "student-tq2_0.gguf").tensors}
    stored = tensors["token_embd.weight"]
    assert stored.n_bytes == 400 * 512 * 34 // 32
    table = gguf.quants.dequantize(stored.data, stored.tensor_type)
    np.testing.assert_array_equal(table[:, :288], load_student(checkpoint).model.model.embed_tokens.weight.numpy())
    assert not table[:, 288:].any()


def test_a_chat_turn_through_the_openai_compatible_server(checkpoint: Path, tmp_path: Path) -> None:
    write(checkpoint, tmp_path, "tq2_0")
    student = load_student(checkpoint)
    messages = [{"role": "user", "content": "area of 12"}]
    prompt = student.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    with llama_cpp(tmp_path / "student-tq2_0.gguf") as llama:
        answer = llama.chat(messages, max_tokens=6)
        next_V = llama.distributions(prompt, 1)[0]
    assert answer["usage"]["prompt_tokens"] == len(prompt)  # our template, our tokens
    assert 1 <= answer["usage"]["completion_tokens"] <= 6
    assert answer["choices"][0]["message"]["role"] == "assistant"
    first = student.tokenizer.decode([int(next_V.argmax())], skip_special_tokens=True)
    assert answer["choices"][0]["message"]["content"].startswith(first.rstrip("\ufffd"))


def test_dense_weights_have_no_ternary_file(make_checkpoint: Any, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(quantise_weights=False, activation_bits=16)
    with pytest.raises(CoreError, match=r"set types = \[\"f16\"\]"):
        write(checkpoint, tmp_path / "out", "tq2_0")
    write(checkpoint, tmp_path / "f16", "f16")
    assert all(figure.passed for figure in check_exports(checkpoint, tmp_path / "f16"))


@pytest.mark.parametrize(
    ("switches", "reason"),
    [
        ({"sublayer_norm": True, "attention_bias": True}, "no place for biases"),
        ({"sublayer_norm": True, "tie_word_embeddings": False}, "no place for a head of its own"),
        ({"sublayer_norm": True, "rope_parameters": LLAMA3_ROPE}, "bitnet has no place for rotary embeddings of type"),
        ({"qk_norm": True, "rope_parameters": LONGROPE}, "qwen3 has no place for rotary embeddings of type 'longrope'"),
        ({"qkv_bias": True, "rope_parameters": YARN | {"truncate": False}}, "qwen2 has no place for rotary embeddings"),
        ({"qk_norm": True, "rope_parameters": YARN | {"beta_fast": 16}}, "qwen3 has no place for rotary embeddings"),
        ({"qk_norm": True, "rope_parameters": YARN | {"attention_factor": 1.3}}, "qwen3 has no place for rotary"),
        ({"sublayer_norm": True, "intermediate_size": 300}, "can't be padded exactly"),
        (PADDED | {"qk_norm": True}, "qk_norm and hidden_size 288 can't be padded exactly"),
        (
            {"qkv_bias": True, "rope_parameters": LLAMA3_ROPE},
            "qwen2 has no place for rotary embeddings of type 'llama3'",
        ),
        ({"hadamard": True}, "no published architecture  → use the packed export"),
        ({"qkv_bias": True, "mlp_bias": True}, "has no mlp_bias  → use the packed export"),
    ],
)
def test_what_llama_cpp_has_no_place_for_is_refused(
    make_checkpoint: Any, tmp_path: Path, switches: dict[str, Any], reason: str
) -> None:
    with pytest.raises(CoreError, match=reason):
        write(make_checkpoint(**switches), tmp_path / "out", "f16")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_file_that_llama_cpp_cannot_load_is_told(tmp_path: Path) -> None:
    (tmp_path / "student-tq2_0.gguf").write_bytes(b"GGUF and then nothing")
    with (
        pytest.raises(CoreError, match=r"llama\.cpp can't load it \(.*\)  → export it again"),
        llama_cpp(tmp_path / "student-tq2_0.gguf"),
    ):
        pass
