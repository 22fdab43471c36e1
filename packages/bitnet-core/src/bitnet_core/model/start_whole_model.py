"""A checkpoint of any architecture, loaded whole, and the student that it starts, of which a layer is made at a time.

The counterpart of `LayeredStart`. Shapes: B documents, T positions, D residual width.
"""

import copy
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bitnet_core.config.student import StudentConfig
from bitnet_core.errors import CoreError
from bitnet_core.hardware import move
from bitnet_core.model.find_layers_and_head import decoder, decoder_layers, embedding, layers_name, linears, widths
from bitnet_core.model.other_architecture import check_logits, dense_or_ternary
from bitnet_core.model.ternarise import TernaryConfig, replace_linears, ternary_config


@attrs.frozen
class Call:
    """What the decoder calls one of its layers with."""

    hidden_BTD: Tensor
    """Those of the first layer are the embedding's; what the others would get isn't computed."""
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@attrs.frozen(eq=False)
class WholeStart:
    """The full-precision model, and how its layers become ternary."""

    folder: Path
    model: PreTrainedModel
    config: TernaryConfig
    prefix: str
    """Before a layer's number in the names of its tensors; "model.layers." for one."""

    @property
    def layers(self) -> int:
        return len(decoder_layers(self.model))

    @property
    def vocab_size(self) -> int:
        return int(self.model.config.vocab_size)

    @property
    def hidden_size(self) -> int:
        return int(embedding(self.model).weight.shape[1])

    @property
    def widest(self) -> int:
        """The widest input of a linear layer."""
        return max(widths(linear)[0] for linear in linears(decoder_layers(self.model)).values())

    def layer(self, index: int, device: torch.device, *, ternary: bool) -> nn.Module:
        """A decoder layer, for inference: the checkpoint's, or a copy of it with ternary linears. [float32]"""
        layer = decoder_layers(self.model)[index]
        if not ternary:
            return move(layer, device)
        made = copy.deepcopy(layer)
        replace_linears(made, f"{self.prefix}{index}.", self.config)
        return move(made, device).eval().requires_grad_(False)

    def calls(self, ids_BT: Tensor, is_token_BT: Tensor) -> list[Call]:
        """How the decoder calls each of its layers on these documents; no layer computes."""
        found: list[Call] = []

        def record(*args: Any, **kwargs: Any) -> Tensor:
            hidden_BTD, *rest = args if args else (kwargs.pop("hidden_states"),)
            found.append(Call(hidden_BTD, tuple(rest), kwargs))
            return hidden_BTD

        with ExitStack() as stack:
            for layer in decoder_layers(self.model):
                layer.forward = record
                stack.callback(delattr, layer, "forward")
            decoder(self.model)(input_ids=ids_BT, attention_mask=is_token_BT.long(), use_cache=False)
        if len(found) != self.layers or any(call.hidden_BTD.shape != found[0].hidden_BTD.shape for call in found):
            raise CoreError(
                f"{self.folder}: its layers ({self.model.config.model_type}) are not called one after the other, "
                "so they can't be calibrated one by one",
                'set student.start = "least_squares"',
            )
        return found

    def outside_layers(self) -> dict[str, Tensor]:
        """The tensors of no layer, tied ones once. [float32, CPU]"""
        tied = self.model.all_tied_weights_keys if self.model.config.tie_word_embeddings else {}
        state = self.model.state_dict()
        return {name: state[name].cpu() for name in state if not name.startswith(self.prefix) and name not in tied}

    def saved_shapes(self) -> dict[str, Tensor]:
        """The student's state as it is saved, on the meta device."""
        shapes = {name: tensor.to("meta") for name, tensor in self.outside_layers().items()}
        layers = copy.deepcopy(decoder_layers(self.model)).to("meta")
        replace_linears(layers, self.prefix, self.config)
        return shapes | {self.prefix + name: tensor for name, tensor in layers.state_dict().items()}

    def write_config(self, folder: Path) -> None:
        """``config.json`` and ``generation_config.json`` of the student, as transformers writes them."""
        config = copy.deepcopy(self.model.config)
        config.quantization_config = self.config
        config.architectures, config.dtype = [type(self.model).__name__], torch.float32
        config.save_pretrained(folder)
        if self.model.generation_config is not None:
            self.model.generation_config.save_pretrained(folder)


def open_whole_start(folder: Path, student: StudentConfig, device: torch.device) -> WholeStart:
    """The checkpoint in `folder` on `device`, as the start of `student`. Raises CoreError as `ternary_student`."""
    model = dense_or_ternary(folder, student)
    check_logits(folder, model)
    config = ternary_config(
        model,
        weight_quantiser=student.weight_quantiser,
        activation_bits=student.activation_bits,
        leave_out=student.leave_out,
    )
    return WholeStart(folder, move(model, device).eval().requires_grad_(False), config, f"{layers_name(model)}.")
