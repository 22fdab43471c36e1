"""Any causal language model of transformers with ternary weights: one call, and the way back.

The linears of the decoder layers become `BitLinear` with an input quantiser of their own. Names and masters stay, so
that a checkpoint holds the dense model's tensors and a ``log_scale`` for each ternary layer. `quantization_config` of
its config.json says the rest: once `bitnet_core.model` is imported, transformers' Auto classes open it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from bitnet_core.errors import CoreError
from bitnet_core.model.find_layers_and_head import decoder_layers, layers_name, linears
from bitnet_core.ternary.activation_quantiser import FakeQuantActivation
from bitnet_core.ternary.bitlinear import BitLinear, ternary_layers
from bitnet_core.weight_format import TERNARISED


@attrs.frozen
class Ternarised:
    """What became of the linears of the decoder layers, by their names in the model."""

    ternary: tuple[str, ...]
    left_out: tuple[str, ...]


class TernaryConfig(QuantizationConfigMixin):
    """How a ternarised model is quantised, in its config.json."""

    def __init__(
        self,
        weight_quantiser: str = "lsq",
        activation_bits: int = 8,
        left_out: Sequence[str] = (),
        low_bits: Sequence[str] = (),
        **_: Any,
    ) -> None:
        self.quant_method: Any = TERNARISED
        self.weight_quantiser = weight_quantiser
        self.activation_bits = activation_bits
        self.left_out = list(left_out)
        """Linears of decoder layers that aren't ternary."""
        self.low_bits = list(low_bits)
        """Linears whose inputs a norm has put out, so that they go down to 4 bits with the model."""


class TransposedBitLinear(BitLinear):
    """Stands where a `Conv1D` was (GPT-2), whose weight is [I, O]; this one's is [O, I]."""


def ternarise(
    model: PreTrainedModel,
    *,
    weight_quantiser: str = "lsq",
    activation_bits: int = 8,
    leave_out: Sequence[str] = (),
) -> Ternarised:
    """Make the linears of the model's decoder layers ternary, in place; weights become masters and stay as they are.

    `leave_out`: patterns (as of a shell) of linears by their names in the model: ``"*.o_proj"``,
    ``"model.layers.0.*"``. Scales start as the least-squares fit. With `activation_bits` 4 inputs that a norm has put
    out have 4, others 8; 16 is off. The model reads two tokens meanwhile, to see which inputs those are.

    Raises:
        CoreError: it is ternary or quantised already, a pattern that fits nothing, or weights that are in no linear
            layer (experts in one tensor) and not left out.
    """
    config = ternary_config(
        model, weight_quantiser=weight_quantiser, activation_bits=activation_bits, leave_out=leave_out
    )
    made = replace_linears(decoder_layers(model), f"{layers_name(model)}.", config)
    model.config.quantization_config = config
    return Ternarised(tuple(made), tuple(config.left_out))


def ternary_config(
    model: PreTrainedModel, *, weight_quantiser: str, activation_bits: int, leave_out: Sequence[str]
) -> TernaryConfig:
    """What `ternarise` would make of the model. Raises CoreError as it does."""
    if getattr(model.config, "quantization_config", None) or any(ternary_layers(model)):
        raise CoreError("this model is quantised already", "ternarise the full-precision model that it was made from")
    found = _names(model)
    unknown = [pattern for pattern in leave_out if not _matching(pattern, (*found, *_loose_matrices(model)))]
    if unknown:
        raise CoreError(f"leave_out: {unknown[0]!r} fits no linear layer", f"names are like {next(iter(found))}")
    loose = [name for name in _loose_matrices(model) if not any(fnmatchcase(name, pattern) for pattern in leave_out)]
    if loose:
        raise CoreError(
            f"{type(model).__name__}: {loose[0]} is in no linear layer, so it can't become ternary",
            f"leave it out: leave_out = ['*.{_within_layer(model, loose[0])}']",
        )
    left_out = [name for name in found if any(fnmatchcase(name, pattern) for pattern in leave_out)]
    return TernaryConfig(weight_quantiser, activation_bits, left_out, after_norms(model))


@torch.no_grad()
def restore_dense(model: PreTrainedModel, *, quantised: bool = False) -> None:
    """The way back, in place: plain linears (and `Conv1D`) with the masters, or with what the ternary layers multiply
    with, if `quantised`."""

    def dense(layer: Any) -> nn.Module:
        weight = layer.quantised_weight(layer.weight.dtype) if quantised else layer.weight
        transposed = isinstance(layer, TransposedBitLinear)
        with torch.device("meta"):
            shape = layer.out_features, layer.in_features
            linear: Any = Conv1D(*shape) if transposed else nn.Linear(*shape[::-1], layer.bias is not None)
        linear.weight = _parameter(weight.T.contiguous() if transposed else weight, layer.weight)
        linear.bias = layer.bias
        return linear.train(layer.training)

    _replace(decoder_layers(model), dense, [name for name, _ in ternary_layers(decoder_layers(model))])
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def replace_linears(root: nn.Module, prefix: str, config: TernaryConfig) -> list[str]:
    """Put ternary layers in the places of the linears within `root`, as `config` says; their names in the model.

    prefix: what stands before the names within `root`; "model.layers." for one.
    """

    def ternary(linear: Any) -> nn.Module:
        transposed = isinstance(linear, Conv1D)
        kind = TransposedBitLinear if transposed else BitLinear
        outputs, inputs = linear.weight.shape[::-1] if transposed else linear.weight.shape
        with torch.device("meta"):
            layer = kind(inputs, outputs, quantiser=config.weight_quantiser)
        layer.weight = _parameter(linear.weight.T.contiguous(), linear.weight) if transposed else linear.weight
        layer.bias = linear.bias
        if layer.log_scale is not None:
            scales = torch.empty(outputs, device=layer.weight.device, dtype=torch.float32)
            layer.log_scale = nn.Parameter(scales, requires_grad=linear.weight.requires_grad)
            if not scales.is_meta:
                layer.fit_scale()
        return layer.train(linear.training)

    chosen = [name for name in linears(root) if prefix + name not in config.left_out]
    _replace(root, ternary, chosen)
    for name in chosen:
        quantiser = FakeQuantActivation(config.activation_bits, low_bits=prefix + name in config.low_bits)
        root.get_submodule(name).input_quantiser = quantiser
    return [prefix + name for name in chosen]


def _parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    if isinstance(value, nn.Parameter):
        return value
    return nn.Parameter(value, requires_grad=like.requires_grad)


def _replace(root: nn.Module, make: Callable[[nn.Module], nn.Module], names: Sequence[str]) -> None:
    """Put ``make(module)`` in each module's place; one that stands in several places stays one."""
    made: dict[nn.Module, nn.Module] = {}
    for name in names:
        module = root.get_submodule(name)
        if module not in made:
            made[module] = make(module)
        root.set_submodule(name, made[module])


def _names(model: PreTrainedModel) -> list[str]:
    start = layers_name(model)
    return [f"{start}.{name}" for name in linears(decoder_layers(model))]


def _loose_matrices(model: PreTrainedModel) -> list[str]:
    """Parameters of decoder layers with two dimensions or more that are no linear layer's."""
    layers, start = decoder_layers(model), layers_name(model)
    owners = {f"{name}.weight" for name in linears(layers)}
    return [f"{start}.{name}" for name, each in layers.named_parameters() if each.dim() > 1 and name not in owners]


def _within_layer(model: PreTrainedModel, name: str) -> str:
    return name.removeprefix(f"{layers_name(model)}.").partition(".")[2]


def _matching(pattern: str, names: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)


@torch.no_grad()
def after_norms(model: PreTrainedModel) -> list[str]:
    """The linears of decoder layers that read the very tensor that a norm has put out. The model reads two tokens."""
    normed: dict[int, Tensor] = {}  # the tensors are kept, so that no other one gets their ids
    found: list[str] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            normed[id(output)] = output

    def look(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if id(inputs[0]) in normed:
                found.append(name)

        return hook

    start = layers_name(model)
    with ExitStack() as stack:
        for module in model.modules():
            if "norm" in type(module).__name__.lower():
                stack.callback(module.register_forward_hook(keep).remove)
        for name, linear in linears(decoder_layers(model)).items():
            stack.callback(linear.register_forward_pre_hook(look(f"{start}.{name}")).remove)
        with _evaluating(model):
            model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=model.device), use_cache=False)
    return list(dict.fromkeys(found))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


class TernaryHfQuantizer(HfQuantizer):
    """Puts the ternary layers into a model that transformers is about to load, and leaves it as `ternarise` does."""

    quantization_config: TernaryConfig

    def preprocess_model(self, model: PreTrainedModel, dtype: Any = None, **kwargs: Any) -> None:
        if not self.pre_quantized:
            raise ValueError("load the model without a quantization_config, then call bitnet_core.ternarise(model)")
        replace_linears(decoder_layers(model), f"{layers_name(model)}.", self.quantization_config)
        model._keep_in_fp32_modules_strict = {*(model._keep_in_fp32_modules_strict or ()), "log_scale"}

    def postprocess_model(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        # Without a quantizer it is trained, saved and cast as any other model.
        del model.hf_quantizer
        model.config.quantization_config = self.quantization_config
        return model

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True


if TERNARISED not in AUTO_QUANTIZER_MAPPING:
    register_quantization_config(TERNARISED)(TernaryConfig)
    register_quantizer(TERNARISED)(TernaryHfQuantizer)
