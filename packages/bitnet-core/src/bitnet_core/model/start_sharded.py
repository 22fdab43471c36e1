"""A student whose parameters several processes share, each of which reads its own rows of the starting checkpoint."""

from collections.abc import Callable, Collection
from pathlib import Path

import attrs
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from bitnet_core.config.student import LLAMA, StudentConfig
from bitnet_core.distributed import make_room, on_meta
from bitnet_core.errors import CoreError
from bitnet_core.model.find_layers_and_head import decoder_layers, layers_name, set_activation_bits
from bitnet_core.model.init_from import check_vocabulary, freeze_embeddings, starting_folder
from bitnet_core.model.other_architecture import check_architecture
from bitnet_core.model.start_layer_by_layer import FolderTensors, Part, Rows, open_start
from bitnet_core.model.ternarise import TernaryConfig, replace_linears
from bitnet_core.weight_format import is_ternarised


@attrs.frozen(eq=False)
class RowStart:
    """A student without values, and where they come from."""

    model: PreTrainedModel
    """On the meta device, in training mode."""
    rows: Callable[[Collection[str], Part], dict[str, Tensor]]
    """Of the parameters with these names, all of one module, the rows that a process has; float32 on the CPU."""


def start_by_rows(config: StudentConfig, teacher_folder: Path | None, vocab_size: int) -> RowStart | None:
    """What `start_student` would make, to be read by rows; None where it can only be made whole: random weights, and
    other architectures that are not ternary yet or keep their tensors under other names. Raises CoreError as it does.
    """
    if not config.init_from:
        return None
    folder = starting_folder(config, teacher_folder)
    start = _llama_shaped(folder, config) if config.architecture == LLAMA else _other(folder, config)
    if start is not None:
        check_vocabulary(start.model.config.vocab_size, vocab_size)
        freeze_embeddings(start.model, config.freeze_embeddings)
    return start


def _llama_shaped(folder: Path, config: StudentConfig) -> RowStart:
    start = open_start(folder, config)
    return RowStart(start.skeleton(), start.rows)


def _other(folder: Path, config: StudentConfig) -> RowStart | None:
    check_architecture(folder, config)
    model = skeleton(folder)
    section = getattr(model.config, "quantization_config", None)
    source = FolderTensors(folder)
    # A dense one must be run once, to see which inputs come from norms; `ternary_student` refuses another quantiser.
    if section is None or section.weight_quantiser != config.weight_quantiser or not has_tensors_of(model, source):
        return None
    set_activation_bits(model, config.activation_bits)
    return RowStart(model, lambda names, part: {name: Rows(source, part)[name] for name in names})


def skeleton(folder: Path) -> PreTrainedModel:
    """The student in `folder`, of any architecture, on the meta device, in training mode: no weight is read."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    section = config.to_dict().get("quantization_config")
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    if is_ternarised(config.to_dict()):
        made = TernaryConfig(**section)
        replace_linears(decoder_layers(model), f"{layers_name(model)}.", made)
        model.config.quantization_config = made
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, trust_remote_code=False)
    return model.train()


def has_tensors_of(model: nn.Module, source: FolderTensors) -> bool:
    """Whether the folder's tensors are just the model's parameters, by name."""
    return {name for name, _ in model.named_parameters()} == source.stored


@torch.no_grad()
def fill(root: nn.Module, model: PreTrainedModel, device: torch.device, start: RowStart | None, part: Part) -> None:
    """Make room on `device` for the sharded `model` within `root`, and read this process's rows into it.

    None: room alone, for a checkpoint that is read into it. Raises CoreError where the files can't be read.
    """
    make_room(root, device)
    for parameter in model.parameters():
        setattr(parameter, "_is_hf_initialized", True)  # noqa: B010 -- so that transformers computes buffers alone
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        if any(True for _ in module.buffers(recurse=False)):
            model._init_weights(module)
        own = {f"{prefix}.{name}".lstrip("."): each for name, each in module.named_parameters(recurse=False)}
        own = {name: each for name, each in own.items() if id(each) not in seen}
        seen |= {id(each) for each in own.values()}
        if start is None or not own:
            continue
        try:
            found = start.rows(own.keys(), part)
        except (OSError, SafetensorError) as error:
            raise CoreError(f"{prefix}: its weights can't be read ({error})", "copy the folder again") from error
        for name, parameter in own.items():
            assert isinstance(parameter, DTensor)
            parameter.to_local().copy_(found[name])
    assert not on_meta(model)
