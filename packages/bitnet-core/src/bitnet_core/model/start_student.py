"""A student before its first step, of whichever architecture its settings ask for."""

from pathlib import Path

from transformers import PreTrainedModel

from bitnet_core.config.student import LLAMA, StudentConfig
from bitnet_core.errors import CoreError
from bitnet_core.model.init_from import build_student, check_vocabulary, freeze_embeddings, starting_folder
from bitnet_core.model.modeling import BitNetKDEForCausalLM
from bitnet_core.model.other_architecture import ternary_student


def start_student(
    config: StudentConfig, teacher_folder: Path | None, vocab_size: int, *, seed: int = 0
) -> PreTrainedModel:
    """As `build_student`, of any architecture."""
    if config.architecture == LLAMA:
        return build_student(config, teacher_folder, vocab_size, seed=seed)
    model = ternary_student(starting_folder(config, teacher_folder), config)
    check_vocabulary(model.config.vocab_size, vocab_size)
    freeze_embeddings(model, config.freeze_embeddings)
    return model.train()


def llama_shaped(
    model: PreTrainedModel, what: str, fix: str = "export it with hf, and run it in torch"
) -> BitNetKDEForCausalLM:
    """`model`, if it is the student that is written here. Raises CoreError, which says that `what` takes no other."""
    if isinstance(model, BitNetKDEForCausalLM):
        return model
    raise CoreError(
        f"{what} is for the student of architecture {LLAMA!r}, and this one is transformers' {model.config.model_type}",
        fix,
    )
