"""What a collection asks about: the prompts and texts of its files or dataset, with template and system prompt."""

from pathlib import Path

import attrs

from bitnet_providers.config import BASELINE_PROMPTS, BaselineConfig, CollectConfig, DatasetConfig
from bitnet_providers.contract import ProviderError
from bitnet_providers.prompts.load_prompts import Loaded, Prompt, Source, Text, read_prompts, read_texts
from bitnet_providers.prompts.template_and_system_prompt import asked, with_system_prompt


@attrs.frozen
class Inputs:
    """As the teacher will see them, in the order of their files."""

    prompts: tuple[Prompt, ...]
    texts: tuple[Text, ...]
    test_prompts: tuple[Prompt, ...] = ()
    test_texts: tuple[Text, ...] = ()
    notes: tuple[str, ...] = ()
    """What the user should know of the files."""


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


def baseline_prompts(config: BaselineConfig) -> Loaded[Prompt]:
    """The first prompts of [baseline]. Raises ProviderError."""
    return read_prompts(config.prompts, config.columns, config.max_prompts, skip_unusable=config.skip_unusable)


def load_inputs(config: CollectConfig) -> Inputs:
    """Prompts and texts, with template and system prompt. Raises ProviderError."""
    check_inputs(config)
    notes: list[str] = []

    def prompts(source: Source | None) -> tuple[Prompt, ...]:
        if source is None:
            return ()
        found = read_prompts(source, config.columns, config.max_prompts, skip_unusable=config.skip_unusable)
        notes.extend(found.notes)
        return tuple(attrs.evolve(each, messages=asked(each.messages, config)) for each in found.items)

    def texts(source: Source | None) -> tuple[Text, ...]:
        if source is None:
            return ()
        found = read_texts(source, config.columns, config.max_texts, skip_unusable=config.skip_unusable)
        notes.extend(found.notes)
        return tuple(
            attrs.evolve(each, messages=with_system_prompt(each.messages, config.system_prompt)) for each in found.items
        )

    return Inputs(
        prompts=prompts(_source(config, "prompts", config.prompts)),
        texts=texts(_source(config, "texts", config.texts)),
        test_prompts=prompts(config.test_prompts),
        test_texts=texts(config.test_texts),
        notes=tuple(notes),
    )


def _source(config: CollectConfig, what: str, file: Path | str | None) -> Source | None:
    dataset: DatasetConfig | None = config.dataset
    return dataset if dataset is not None and dataset.gives == what else None if file is None else Path(file)
