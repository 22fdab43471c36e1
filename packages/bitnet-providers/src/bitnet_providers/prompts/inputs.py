"""What a collection asks about: the prompts and texts of its files or dataset, with template and system prompt."""

from pathlib import Path

import attrs

from bitnet_providers.config import BASELINE_PROMPTS, CollectConfig
from bitnet_providers.contract import Message, ProviderError
from bitnet_providers.prompts.files import (
    Prompt,
    Text,
    load_dataset_prompts,
    load_dataset_texts,
    load_prompts,
    load_texts,
)


def check_inputs(config: CollectConfig) -> None:
    """Raises ProviderError where nothing is asked about, or one thing from two places."""
    of_dataset = None if config.dataset is None else config.dataset.gives
    for what, given in (("prompts", config.prompts), ("texts", config.texts)):
        if of_dataset == what and given is not None:
            raise ProviderError(f"collect.{what} and [collect.dataset] both give {what}", "take one of them out")
    if config.prompts is None and config.texts is None and config.dataset is None:
        raise ProviderError("[collect] asks for nothing", "set collect.prompts, collect.texts, or both")
    if config.prompts == BASELINE_PROMPTS:
        # The front door puts the file's name there.
        raise ProviderError('collect.prompts = "baseline" names no file here', "name the file of [baseline]")


def load_inputs(config: CollectConfig) -> tuple[tuple[Prompt, ...], tuple[Text, ...]]:
    """(prompts, texts) as the teacher will see them, in the order of their files. Raises ProviderError."""
    check_inputs(config)
    of_dataset = None if config.dataset is None else config.dataset.gives
    prompts: tuple[Prompt, ...] = ()
    texts: tuple[Text, ...] = ()
    if config.dataset is not None and of_dataset == "prompts":
        prompts = load_dataset_prompts(config.dataset, config.columns, config.max_prompts)
    elif config.prompts is not None:
        prompts = load_prompts(Path(config.prompts), config.columns, config.max_prompts)
    if config.dataset is not None and of_dataset == "texts":
        texts = load_dataset_texts(config.dataset, config.columns, config.max_texts)
    elif config.texts is not None:
        texts = load_texts(config.texts, config.columns, config.max_texts)
    return (
        tuple(attrs.evolve(each, messages=_asked(each.messages, config)) for each in prompts),
        tuple(attrs.evolve(each, messages=_with_system(each.messages, config.system_prompt)) for each in texts),
    )


def _asked(messages: tuple[Message, ...], config: CollectConfig) -> tuple[Message, ...]:
    if config.prompt_template is not None:
        last = messages[-1]
        content = config.prompt_template.replace("{prompt}", last["content"])  # not format(): braces are common in both
        messages = (*messages[:-1], {**last, "content": content})
    return _with_system(messages, config.system_prompt)


def _with_system(messages: tuple[Message, ...], system_prompt: str | None) -> tuple[Message, ...]:
    """A plain text (no messages) stays plain."""
    if system_prompt is None or not messages or messages[0]["role"] == "system":
        return messages
    return ({"role": "system", "content": system_prompt}, *messages)
