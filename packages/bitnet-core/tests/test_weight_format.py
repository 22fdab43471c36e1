"""Quantised weights are found in a folder before anything is loaded, however they are marked."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from bitnet_core.weight_format import BitNetFormat, bitnet_format, start_problem

LAYER = "model.layers.0.mlp.up_proj"
OTHERS = ("bitsandbytes", "gptq", "awq", "hqq", "compressed-tensors", "torchao", "fp8", "fbgemm_fp8", "mxfp4", "quark")
"""transformers' methods whose stored numbers aren't the weights, and any that it will have: see the test."""
BITNET = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"}


def folder(path: Path, config: dict[str, Any], **tensors: Any) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
    save_file({name: np.asarray(value) for name, value in tensors.items()}, path / "model.safetensors")
    return path


@given(
    method=st.one_of(st.sampled_from(OTHERS), st.text(min_size=1).filter(lambda name: name != "bitnet"), st.none()),
    section=st.sampled_from(["quantization_config", "compression_config", "quantization"]),
    within=st.lists(st.sampled_from(["text_config", "llm_config"]), max_size=2),
)
def test_every_other_quantisation_is_refused(
    tmp_path_factory: pytest.TempPathFactory, method: str | None, section: str, within: list[str]
) -> None:
    config: dict[str, Any] = {section: {"bits": 4} if method is None else {"quant_method": method}}
    for name in within:
        config = {name: config}
    found = start_problem(folder(tmp_path_factory.mktemp("start"), config, w=np.ones(2, np.float32)))
    assert found is not None
    assert "quantization_config" in found
    assert method is None or method in found


@pytest.mark.parametrize(("dtype", "told"), [("uint8", "U8"), ("int8", "I8"), ("int32", "I32")])
def test_weights_that_are_no_numbers_are_found_without_a_word_in_the_config(
    tmp_path: Path, dtype: str, told: str
) -> None:
    start = folder(tmp_path, {}, **{f"{LAYER}.qweight": np.ones(2, dtype), "steps": np.ones(1, "int64")})
    assert start_problem(start) == f"its {LAYER}.qweight is stored as {told}: no plain weights"


def test_older_tools_side_files_count(tmp_path: Path) -> None:
    start = folder(tmp_path, {}, w=np.ones(2, np.float16))
    assert start_problem(start) is None
    (start / "quantize_config.json").write_text("{}")
    assert start_problem(start) == "it has a quantize_config.json: its weights are quantised (GPTQ)"


def test_shards_are_looked_at_too(tmp_path: Path) -> None:
    start = folder(tmp_path, {})
    (start / "model.safetensors").rename(start / "model-1.safetensors")
    save_file({f"{LAYER}.weight": np.ones(2, np.int8)}, start / "model-2.safetensors")
    (start / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})
    )
    assert start_problem(start) == f"its {LAYER}.weight is stored as I8: no plain weights"


PACKED, DENSE, SCALE = np.ones((1, 4), np.uint8), np.ones((4, 4), np.float32), np.ones(1, np.float32)


@pytest.mark.parametrize(
    ("changes", "tensors", "problem"),
    [
        ({}, {"weight": PACKED, "weight_scale": SCALE}, None),
        ({}, {"weight": DENSE, "weight_scale": SCALE}, None),
        ({"linear_class": "bitlinear"}, {"weight": PACKED, "weight_scale": SCALE}, None),
        ({"quantization_mode": "online"}, {"weight": DENSE}, None),
        ({"modules_to_not_convert": ["up_proj"]}, {"weight": DENSE}, None),
        ({}, {"weight": PACKED}, "is packed, and the scale of it"),
        ({}, {"weight": DENSE}, "the scale of its"),
        ({"linear_class": "bitlinear"}, {"weight": DENSE, "weight_scale": SCALE}, "is not packed"),
        ({"quantization_mode": "online"}, {"weight": PACKED}, "doesn't say how to read"),
        ({}, {"weight": PACKED.astype(np.int32), "weight_scale": SCALE}, "doesn't say how to read"),
        ({"use_rms_norm": True}, {"weight": PACKED, "weight_scale": SCALE}, "an RMSNorm in each layer"),
    ],
)
def test_bitnets_own_format_can_start_a_student(
    tmp_path: Path, changes: dict[str, Any], tensors: dict[str, Any], problem: str | None
) -> None:
    named = {f"{LAYER}.{name}": value for name, value in tensors.items()}
    found = start_problem(folder(tmp_path, {"quantization_config": BITNET | changes}, **named))
    assert (found is None) == (problem is None)
    assert found is None or problem is None or problem in found


def test_what_cannot_be_read_is_left_to_who_loads_it(tmp_path: Path) -> None:
    assert start_problem(tmp_path / "nowhere") is None
    (tmp_path / "config.json").write_text("[")
    assert start_problem(tmp_path) is None
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    assert start_problem(tmp_path) is None


def test_older_configs_say_little() -> None:
    found = bitnet_format({"quantization_config": {"quant_method": "bitnet", "modules_to_not_convert": None}})
    assert found == BitNetFormat(divides=True, online=False, unconverted=("lm_head",))
    assert (found.converts("model.layers.0.mlp.up_proj"), found.converts("lm_head")) == (True, False)
    assert bitnet_format({}) is None
