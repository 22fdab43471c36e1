"""A config.json that speaks of far more than the weights beside it have is refused before anything is built."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bitnet_core.errors import CoreError
from bitnet_core.model.read_checkpoint import load_model
from bitnet_core.runtime.open import open_runtime
from bitnet_core.runtime.packed.load_weights import packed_weights
from bitnet_core.weight_format import check_sizes

SIZES = {"num_hidden_layers": 2, "hidden_size": 8, "vocab_size": 16, "intermediate_size": 16, "num_attention_heads": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file({name: torch.zeros(16, 8) for name in "abc"}, tmp_path / "model.safetensors")
    (tmp_path / "tokenizer.json").write_text("{}")
    return tmp_path


def write(folder: Path, **changes: object) -> None:
    config = {"model_type": "bitnet_kde", "quantise_weights": True, "packed": True, **SIZES, **changes}
    (folder / "config.json").write_text(json.dumps(config))


def test_sizes_that_fit_pass_and_what_is_no_size_is_left_to_others(folder: Path) -> None:
    for changes in ({}, {"hidden_size": "big"}, {"num_hidden_layers": None}, {"vocab_size": [1]}):
        write(folder, **changes)
        check_sizes(folder)
    for text in ("[]", "{", "7", "[" * 100_000):
        (folder / "config.json").write_text(text)
        check_sizes(folder)


@pytest.mark.parametrize("name", SIZES)
def test_absurd_sizes_are_refused_by_everything_that_loads(folder: Path, name: str) -> None:
    write(folder, **{name: 10**9})
    for load in (check_sizes, load_model, packed_weights):
        with pytest.raises(CoreError, match=f"{name} = 1000000000 is more than the weights beside it have"):
            load(folder)
    with pytest.raises(CoreError), open_runtime(folder):
        pass
