"""A folder that loads may yet be no teacher: found before anything is asked."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from bitnet_providers.contract import ProviderError
from bitnet_providers.teachers.local import load_model
from bitnet_providers.teachers.local.options import LocalTeacherConfig
from bitnet_providers.teachers.local.teacher import open_local


class Output(dict[str, Any]):
    """Found by key and by attribute, as transformers' outputs are."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class SimpleCall(SimpleNamespace):
    """A model that answers what it is told to."""

    def __init__(self, answer: Any, **facts: Any) -> None:
        super().__init__(answer=answer, **facts)

    def __call__(self, **inputs: Any) -> Any:
        return self.answer(**inputs)


def changed(tiny_folder: Path, folder: Path, **weights: torch.Tensor | None) -> str:
    """A copy with other weights, or without some; the error of opening it."""
    shutil.copytree(tiny_folder, folder)
    tensors = load_file(folder / "model.safetensors")
    for name, value in weights.items():
        tensors.pop(name) if value is None else tensors.__setitem__(name, value)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ProviderError) as caught:
        open_local(LocalTeacherConfig(model=str(folder), device="cpu", dtype="fp32"))
    return str(caught.value).replace(str(folder), "FOLDER")


def test_weights_that_are_not_there_are_never_drawn(tiny_folder: Path, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    assert changed(tiny_folder, tmp_path / "cut", **{name: None}) == (
        f"teacher.model: FOLDER lacks 1 of the weights ({name}): they would be drawn  → name a whole language "
        "model: no classifier, no encoder, no adapter"
    )


def test_weights_that_are_no_numbers_are_found_before_anything_is_asked(tiny_folder: Path, tmp_path: Path) -> None:
    size = load_file(tiny_folder / "model.safetensors")["model.norm.weight"].shape
    told = changed(tiny_folder, tmp_path / "nan", **{"model.norm.weight": torch.full(size, float("nan"))})
    assert told.startswith("teacher.model: FOLDER answers NaN: its weights are no numbers, or too large for fp32")


def test_a_model_that_loads_and_is_no_teacher(tiny_folder: Path) -> None:
    model = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32)
    logits = torch.randn(2, 2, 9)

    def told(answer: Any) -> str:
        with pytest.raises(ProviderError) as caught:
            load_model._try_out(SimpleCall(answer, **vars(model)), tiny_folder)
        return str(caught.value).replace(str(tiny_folder), "FOLDER")

    def fails(**_: Any) -> Any:
        raise RuntimeError("expected m1 and m2\nto have the same dtype")

    assert told(fails) == (
        "teacher.model: FOLDER is loaded, but does not run on cpu in fp32 (RuntimeError: expected m1 and m2 to have "
        'the same dtype)  → set teacher.dtype = "fp32", or name the unquantised model'
    )
    looks_ahead = Output(logits=logits, past_key_values=object())
    keeps_nothing = Output(logits=logits[:1].expand(2, 2, 9))
    for answer, why in ((looks_ahead, "is no causal language model"), (keeps_nothing, "keeps no keys and values")):
        assert why in told(lambda answer=answer, **_: answer)
    load_model._try_out(AutoModelForCausalLM.from_pretrained(tiny_folder), tiny_folder)
