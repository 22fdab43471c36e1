"""Whether the files say what the student says: the equality rules of every export, measured.

- Codes: each ternary weight and each row scale in the file against the checkpoint's own; none may differ.
- Layer: outputs on identical inputs against integer arithmetic; within 1e-5 of the largest.
- Model: KL(student ‖ file) in nats, on the tokens of a text. Without activation quantisation the files agree to
  rounding, and a folder of transformers' 8-bit layers is compared with that switched off. With it, a value that lies at
  the border of two codes may fall on either side, by the order of operations: a few such ties in a text make most of
  the KL of a right export, so that it says little. Transformers' layers are therefore held to integer arithmetic on
  inputs without ties, and the whole may differ by twice what 8 bits cost the student, as two independent roundings do.
  llama.cpp's int8 has a scale per 256 values, not per token: it may be as far from the student without activation
  quantisation as that.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from bitnet_core.errors import CoreError
from bitnet_core.export.compare_codes import CodeComparison, compare_gguf, compare_safetensors
from bitnet_core.export.folder import RECORD
from bitnet_core.export.gguf.compare_tokens import differences, probes
from bitnet_core.export.gguf.vocabulary import vocabulary_of
from bitnet_core.export.load_student import Student, load_own, load_student
from bitnet_core.model.find_layers_and_head import activation_bits, set_activation_bits
from bitnet_core.model.modeling import BitNetKDEForCausalLM
from bitnet_core.model.progress_bars import no_progress_bars
from bitnet_core.model.start_student import llama_shaped
from bitnet_core.model.ternarise import TransposedBitLinear
from bitnet_core.runtime.llamacpp.server import llama_cpp
from bitnet_core.ternary.activation_quantiser import activation_codes
from bitnet_core.ternary.bitlinear import ternary_layers
from bitnet_core.ternary.packed_linear import PackedBitLinear, unpack_codes

TEXT = (
    "The capital of France is Paris. def area(r):\n    return 3.14159 * r ** 2\n\n"
    'Names: Zoë, José, 東京. {"name": "tea", "price": 12.50} Water boils at 100 degrees, and so'
)
LAYER_BAR = 1e-5
EXACT_BAR = {"f32": 1e-9, "f16": 1e-5}
"""KL of a file without activation quantisation: another order of sums; inputs rounded to float16."""
SAME_BAR = 1e-9
"""KL of a folder that computes the same, but for the order of float32 sums."""
ROUNDINGS = 2.0
"""How many times the cost of 8-bit activations is still the same model, rounded otherwise."""


@attrs.frozen
class Figure:
    """One line of the check."""

    target: str
    what: str
    value: float
    bar: float | None
    """The largest value that passes; None: for comparison."""
    unit: str

    @property
    def passed(self) -> bool:
        return self.bar is None or self.value <= self.bar

    def __str__(self) -> str:
        value = f"{self.value:.3g}" if isinstance(self.value, float) else f"{self.value:,}"
        bar = "" if self.bar is None else f"  ({'at most' if self.passed else 'TOO MUCH, at most'} {self.bar:.3g})"
        return f"{self.target:<22} {self.what:<58} {value:>9} {self.unit}{bar}"


def check_exports(
    checkpoint: Path, out: Path, *, tokens: int = 16, on_progress: Callable[[int, int, str], None] | None = None
) -> list[Figure]:
    """Every figure for the exports of `checkpoint` that lie in `out`, GGUF files through llama.cpp itself.

    Raises:
        CoreError: no exports there, or they are another checkpoint's; llama.cpp is missing or can't load a file.
    """
    targets = _targets(checkpoint, out)
    own = load_own(checkpoint).eval()
    student = load_student(checkpoint)
    ids = student.tokenizer(TEXT, add_special_tokens=False).input_ids
    figures = list(_own_figures(own, student.model, ids))
    cost = next(each.value for each in figures if each.what == COST)
    orders = next(each.value for each in figures if each.what == ORDER)
    a8_bar = ROUNDINGS * max(cost, orders)
    for number, target in enumerate(targets):
        if on_progress is not None:
            on_progress(number, len(targets), target)
        if target.endswith(".gguf"):
            figures += _gguf_figures(own, student, out / target, ids, min(tokens, len(ids)), cost)
        else:
            figures += _folder_figures(own, student.model, out / target, ids, a8_bar)
    return figures


COST = "KL of A8 to the student without activation quantisation"
ORDER = "KL between two orders of operation, A8"


def _targets(checkpoint: Path, out: Path) -> list[str]:
    try:
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))["exports"]
        kinds = {
            name: entry["checkpoint"] for name, entry in record.items() if entry["kind"] in ("hf", "packed", "gguf")
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CoreError(f"{out}: there are no exports to check", "make them with `bitnet export`") from error
    found = [name for name in kinds if (out / name).exists() and name != "Modelfile"]
    others = [name for name in found if kinds[name] != checkpoint.name]
    if others or not found:
        what = f"{others[0]} was made from {kinds[others[0]]}" if others else "nothing is left there"
        raise CoreError(f"{out}: {what}, not from {checkpoint.name}", "export again, then check")
    return found


def _own_figures(own: PreTrainedModel, snapped: PreTrainedModel, ids: list[int]) -> Iterator[Figure]:
    """What the student itself says: what snapping costs, what A8 costs, and how far two orders of it are apart."""
    plain, plain_snapped = log_probabilities(own, ids, 16), log_probabilities(snapped, ids, 16)
    eight = log_probabilities(snapped, ids, 8)
    with integer_order(snapped):
        reordered = log_probabilities(snapped, ids, 8)
    yield Figure("student", "KL of scales in float16, tables in 8 bits", kl(plain, plain_snapped), None, "nats")
    yield Figure("student", COST, kl(plain_snapped, eight), None, "nats")
    yield Figure("student", ORDER, kl(eight, reordered), None, "nats")
    yield Figure("student", "packed layer against integer arithmetic", layer_difference(snapped), LAYER_BAR, "relative")


def _folder_figures(
    own: PreTrainedModel, snapped: PreTrainedModel, folder: Path, ids: list[int], a8_bar: float
) -> Iterator[Figure]:
    from transformers import AutoModelForCausalLM

    yield from _code_figures(folder.name, compare_safetensors(own, folder))
    with no_progress_bars():
        model: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, trust_remote_code=False).eval()
    is_packed = isinstance(model, BitNetKDEForCausalLM)
    ran_at = activation_bits(snapped) if is_packed else _hf_bits(own)
    ours, theirs = log_probabilities(snapped, ids, ran_at), _their_log_probabilities(model, ids)
    if is_packed or ran_at == 16:
        yield Figure(folder.name, f"KL to the student, A{ran_at}", kl(ours, theirs), SAME_BAR, "nats")
        return
    yield from _bit_linear_figures(folder.name, model)
    with plain_activations():
        exact = _their_log_probabilities(model, ids)
    plain = kl(log_probabilities(snapped, ids, 16), exact)
    yield Figure(folder.name, "KL to the student, both without activation quantisation", plain, SAME_BAR, "nats")
    yield Figure(folder.name, f"KL to the student, A{ran_at}", kl(ours, theirs), a8_bar, "nats")


@torch.no_grad()
def _their_log_probabilities(model: Any, ids: list[int]) -> NDArray[np.float64]:
    # Compiling transformers' layers would take longer than running them once.
    with torch.compiler.set_stance("force_eager"):
        found: NDArray[np.float64] = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1).numpy()
    return found


def _bit_linear_figures(target: str, model: torch.nn.Module) -> Iterator[Figure]:
    """Transformers' 8-bit layers: whether all are there, and the largest difference of one from integer arithmetic."""
    from transformers.integrations.bitnet import AutoBitLinear

    layers = [layer for name, layer in model.named_modules() if name.endswith("_proj")]
    quantised = [layer for layer in layers if isinstance(layer, AutoBitLinear)]
    missing = len(layers) - len(quantised)
    yield Figure(target, f"layers without 8-bit activations, of {len(layers)}", missing, 0, "layers")
    worst = max(map(_difference_without_ties, quantised), default=0.0)
    yield Figure(target, "a layer against integer arithmetic, between two ties", worst, LAYER_BAR, "relative")


@torch.no_grad()
def _difference_without_ties(layer: Any) -> float:
    """The largest |layer − integer arithmetic in float64| over the largest |output|, on inputs that lie off the borders
    of two codes, so that every order of operations rounds them alike."""
    generator = torch.Generator().manual_seed(0)
    size = (8, layer.in_features)
    codes_NI = torch.randint(-126, 127, size, generator=generator).double()
    codes_NI[:, 0] = 127  # the largest of each row says its scale
    off_NI = (torch.rand(size, generator=generator).double() - 0.5) * 0.98
    off_NI[:, 0] = 0
    scale_N1 = torch.rand(8, 1, generator=generator).double() + 0.5
    exact_NO = (codes_NI * scale_N1) @ layer.weight.double().T
    if layer.bias is not None:
        exact_NO += layer.bias.double()
    exact_NO *= layer.weight_scale.double()
    with torch.compiler.set_stance("force_eager"):
        found_NO = layer(((codes_NI + off_NI) * scale_N1).to(layer.weight.dtype)).double()
    return float((found_NO - exact_NO).abs().max() / exact_NO.abs().max().clamp(min=1e-30))


@contextmanager
def plain_activations() -> Iterator[None]:
    """Within it transformers' BitNet layers take their inputs as they are."""
    module: Any = import_module("transformers.integrations.bitnet")

    class Unchanged:
        """In the place of `ActQuant`."""

        @staticmethod
        def apply(activation: Tensor) -> Tensor:
            return activation

    quantiser = module.ActQuant
    module.ActQuant = Unchanged
    try:
        yield
    finally:
        module.ActQuant = quantiser


def _gguf_figures(
    own: PreTrainedModel, student: Student, file: Path, ids: list[int], tokens: int, cost: float
) -> Iterator[Figure]:
    yield from _code_figures(file.name, compare_gguf(llama_shaped(own, file.name), file))
    snapped = student.model
    asked = probes(student.tokenizer, vocabulary_of(student.tokenizer, snapped.config.vocab_size))
    with llama_cpp(file, context=len(ids) + 8, exact_attention=True) as llama:
        theirs = llama.distributions(ids, tokens)
        others = differences(llama, asked)
    common = [each for each in others if each.probe.common]
    what = "common texts with other tokens in llama.cpp, of"
    yield Figure(file.name, f"{what} {sum(each.common for each in asked)}", len(common), 0, "texts")
    example = f" ({others[0]})" if len(others) > len(common) else ""
    what = f"other scripts, special tokens, longer chats: the same{example}, of"
    rest = len(asked) - sum(each.common for each in asked)
    yield Figure(file.name, f"{what} {rest}", len(others) - len(common), None, "texts")
    ours = {each: log_probabilities(snapped, ids, each)[-tokens:] for each in (16, 8)}
    exact = EXACT_BAR.get(file.stem[-3:])
    bar = ROUNDINGS * max(cost, kl(ours[16], ours[8])) if exact is None else exact
    yield Figure(file.name, "KL to the student without activation quantisation", kl(ours[16], theirs), bar, "nats")
    if exact is None:
        yield Figure(file.name, "KL to the student, A8", kl(ours[8], theirs), None, "nats")


def _hf_bits(own: PreTrainedModel) -> int:
    """At how many bits the ``hf`` folder of this student is to compute."""
    has_conv1d = any(isinstance(layer, TransposedBitLinear) for _, layer in ternary_layers(own))
    return 16 if activation_bits(own) == 16 or has_conv1d else 8


def _code_figures(target: str, found: CodeComparison) -> Iterator[Figure]:
    yield Figure(target, f"codes that differ, of {found.codes:,}", found.differing_codes, 0, "codes")
    yield Figure(target, f"row scales that differ, of {found.scales:,}", found.differing_scales, 0, "scales")


@torch.no_grad()
def log_probabilities(model: PreTrainedModel, ids: list[int], bits: int) -> NDArray[np.float64]:
    """log p [T, V] in nats after each token, at `bits` of activations; the model keeps its own."""
    before = activation_bits(model)
    set_activation_bits(model, bits)
    found: NDArray[np.float64] = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1).numpy()
    set_activation_bits(model, before)
    return found


def kl(ours_TV: NDArray[np.float64], theirs_TV: NDArray[np.float64]) -> float:
    """Mean KL(ours ‖ theirs) over positions, nats."""
    return float((np.exp(ours_TV) * (ours_TV - theirs_TV)).sum(1).mean())


def integer_product(layer: PackedBitLinear, x_NI: Tensor) -> Tensor:
    """The layer's output with the integers multiplied first and both scales after: equal in algebra, not in rounding.

    `x_NI` is what `FakeQuantActivation` made at 8 bits, whose codes are found again exactly, or what it would be given.
    """
    x_codes_NI, x_scale_N1 = activation_codes(x_NI, 8)
    codes_OI = unpack_codes(layer.codes, layer.in_features).float()
    y_NO = (x_codes_NI @ codes_OI.T) * x_scale_N1 * layer.row_scale
    return y_NO if layer.bias is None else y_NO + layer.bias


@contextmanager
def integer_order(model: PreTrainedModel) -> Iterator[None]:
    """Within it every packed layer computes by `integer_product`."""
    layers = [layer for layer in model.modules() if isinstance(layer, PackedBitLinear)]
    for layer in layers:
        layer.forward = partial(integer_product, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


@torch.no_grad()
def layer_difference(model: PreTrainedModel) -> float:
    """The largest |packed layer − integer arithmetic in float64| over the largest |output|, on random A8 inputs."""
    generator = torch.Generator().manual_seed(0)
    worst, before = 0.0, activation_bits(model)
    set_activation_bits(model, 16)  # the inputs are quantised here
    for layer in (layer for layer in model.modules() if isinstance(layer, PackedBitLinear)):
        codes_NI, scale_N1 = activation_codes(torch.randn(8, layer.in_features, generator=generator), 8)
        codes_OI = unpack_codes(layer.codes, layer.in_features).double()
        exact = (codes_NI.double() @ codes_OI.T) * scale_N1.double() * layer.row_scale.double()
        if layer.bias is not None:
            exact += layer.bias.double()
        difference = (layer(codes_NI * scale_N1).double() - exact).abs().max() / exact.abs().max().clamp(min=1e-30)
        worst = max(worst, float(difference))
    set_activation_bits(model, before)
    return worst
