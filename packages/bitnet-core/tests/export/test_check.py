"""The check tells a wrong export from a right one whose activations fall on the other side of a tie."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bitnet_core.config.export import HFOptions
from bitnet_core.export import check
from bitnet_core.export.folder import export
from bitnet_core.export.hf import hf_exporter


def broken(checkpoint: Path, out: Path) -> list[str]:
    return [figure.what for figure in check.check_exports(checkpoint, out) if not figure.passed]


@pytest.mark.parametrize("seed", range(3))
def test_ties_are_no_fault(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """One code of each layer's input moved by one step, as a tie does, in a sixth of the positions."""
    export(checkpoint, {"hf": hf_exporter(HFOptions())}, tmp_path)
    plain = check.log_probabilities
    generator = torch.Generator().manual_seed(seed)

    def tied(model: Any, ids: list[int], bits: int) -> Any:
        def move(module: Any, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            (x,) = inputs
            x = x.clone()
            place = int(torch.randint(x.shape[-1], (1,), generator=generator))
            step = x.abs().amax(-1) / 127
            which = torch.rand(x.shape[:-1], generator=generator) < 1 / 6
            x[..., place] += torch.where(which & (x[..., place].abs() < 126 * step), step, 0)
            return (x,)

        layers = [layer for layer in model.modules() if isinstance(layer, check.PackedBitLinear)]
        hooks = [layer.register_forward_pre_hook(move) for layer in layers] if bits == 8 else []
        try:
            return plain(model, ids, bits)
        finally:
            for hook in hooks:
                hook.remove()

    monkeypatch.setattr(check, "log_probabilities", tied)
    assert broken(checkpoint, tmp_path) == []


def rotate_otherwise(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] *= 1.1
    (folder / "config.json").write_text(json.dumps(config))


def leave_activations_alone(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))


def change(folder: Path, name: str, factor: float) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = tensors[name].clone()
    tensors[name][-1] *= factor
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("harm", "found"),
    [
        (rotate_otherwise, "both without activation quantisation"),
        (leave_activations_alone, "layers without 8-bit activations"),
        (lambda folder: change(folder, "model.norm.weight", 1.01), "both without activation quantisation"),
        (lambda folder: change(folder, "model.layers.0.input_layernorm.weight", 1.1), "both without"),
        (lambda folder: change(folder, "model.layers.1.mlp.up_proj.weight_scale", 1.01), "both without"),
    ],
)
def test_a_wrong_export_is_found(checkpoint: Path, tmp_path: Path, harm: Any, found: str) -> None:
    export(checkpoint, {"hf": hf_exporter(HFOptions())}, tmp_path)
    harm(tmp_path / "hf")
    assert any(found in what for what in broken(checkpoint, tmp_path))


@pytest.mark.parametrize("offset", [0.6, 1.0])
def test_other_rounding_is_found(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offset: float
) -> None:
    """Transformers' own layers, were they to round otherwise."""
    from transformers.integrations import bitnet

    class Coarser:
        @staticmethod
        def apply(x: torch.Tensor) -> torch.Tensor:
            scale = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
            return (x * scale + offset).floor() / scale

    export(checkpoint, {"hf": hf_exporter(HFOptions())}, tmp_path)
    monkeypatch.setattr(bitnet, "ActQuant", Coarser)
    assert "a layer against integer arithmetic, between two ties" in broken(checkpoint, tmp_path)
