"""The tokens that end an answer, by what both configs of a model say."""

from collections.abc import Sequence

from transformers import PreTrainedModel


def set_end_tokens(model: PreTrainedModel, ids: Sequence[int]) -> None:
    """Have `model` say, in both of its configs, that any of these tokens ends an answer."""
    if not ids:
        return
    several: int | list[int] = list(ids) if len(ids) > 1 else ids[0]
    for config in (model.config, model.generation_config):
        if config is not None:
            config.eos_token_id = several


def configured_ends(model: PreTrainedModel) -> set[int]:
    """The tokens that end an answer by what both of the model's configs say."""
    found = (getattr(config, "eos_token_id", None) for config in (model.config, model.generation_config))
    return {int(id_) for ids in found if ids is not None for id_ in (ids if isinstance(ids, list) else [ids])}
