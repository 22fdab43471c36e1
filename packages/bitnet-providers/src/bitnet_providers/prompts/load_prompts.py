"""Prompts (to be answered) and texts (to be scored) out of the user's files and datasets, as the teacher is asked.

How a file is read is in `json_and_csv_rows` and `parquet_and_dataset_rows`, what a row may look like in `row_shapes`. A
row's id is its own, else the number of its line (Parquet and datasets: of its row, from 0).
"""

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, count
from pathlib import Path
from typing import Generic, TypeVar

import attrs

from bitnet_providers.config import BASELINE_PROMPTS, BaselineConfig, CollectConfig, ColumnsConfig, DatasetConfig
from bitnet_providers.contract import Message, ProviderError
from bitnet_providers.prompts.json_and_csv_rows import Row, ending_of, rows_of_text
from bitnet_providers.prompts.row_shapes import format_of, id_of, known_columns, prompt_of, text_of

_CONTINUED = bytes(range(0x80, 0xC0)).decode("cp1252", "ignore")
_GARBLED: re.Pattern[str] = re.compile(f"\ufffd|(\u00c3|\u00e2\u20ac|\u00f0\u0178)[{_CONTINUED}]")
"""Characters that were lost, or UTF-8 that was read as another encoding and saved so."""


@attrs.frozen
class Prompt:
    """A conversation that waits for its answer."""

    id: str
    messages: tuple[Message, ...]
    format: str | None = None
    """What the answer should be, e.g. ``"json"``."""


@attrs.frozen
class Text:
    """A text to score: as the answer to `messages`, or, with none, as plain text."""

    id: str
    text: str
    messages: tuple[Message, ...] = ()
    format: str | None = None


Item = TypeVar("Item", Prompt, Text)
Source = Path | DatasetConfig
"""A file or folder, or a dataset."""


@attrs.frozen
class Loaded(Generic[Item]):
    """What a source gave."""

    items: tuple[Item, ...]
    notes: tuple[str, ...] = ()
    """What the user should know: rows that were left out, ids that were changed."""


def load_prompts(path: Path, columns: ColumnsConfig | None = None, limit: int | None = None) -> tuple[Prompt, ...]:
    """The prompts of a file, in its order, `limit` at most. Raises ProviderError with every line that can't be used."""
    return read_prompts(Path(path), columns or ColumnsConfig(), limit).items


def load_texts(path: Path, columns: ColumnsConfig | None = None, limit: int | None = None) -> tuple[Text, ...]:
    """The texts of a file, in its order, `limit` at most. Raises ProviderError with every line that can't be used."""
    return read_texts(Path(path), columns or ColumnsConfig(), limit).items


def read_prompts(
    source: Source, columns: ColumnsConfig, limit: int | None = None, *, skip_unusable: bool = False
) -> Loaded[Prompt]:
    """The prompts of a source, `limit` at most. With `skip_unusable` rows that can't be used are left out and told.

    Raises ProviderError: the source can't be read, holds no prompt, or rows can't be used (all of them are named).
    """

    def prompt(row: Row, id_: str) -> Prompt:
        return Prompt(id_, prompt_of(row.value, columns), format_of(row.value, columns))

    return _gather(source, columns, "prompt", prompt, limit, skip_unusable)


def read_texts(
    source: Source, columns: ColumnsConfig, limit: int | None = None, *, skip_unusable: bool = False
) -> Loaded[Text]:
    """As `read_prompts`, for texts to score."""

    def text(row: Row, id_: str) -> Text:
        return Text(id_, *text_of(row.value, columns), format_of(row.value, columns))

    return _gather(source, columns, "text", text, limit, skip_unusable)


def _gather(
    source: Source,
    columns: ColumnsConfig,
    what: str,
    item_of: Callable[[Row, str], Item],
    limit: int | None,
    skip_unusable: bool,
) -> Loaded[Item]:
    name, rows = _rows(source, columns)
    items: list[Item] = []
    unusable: list[tuple[str, ProviderError]] = []
    taken: set[str] = set()
    repeated: list[str] = []
    unread: dict[str, None] = {}
    garbled: list[str] = []
    known = known_columns(columns)
    for row in rows:
        unread.update(dict.fromkeys(row.unread))
        if isinstance(row.value, Mapping):
            unread.update((str(each), None) for each in row.value if each and each not in known)
        try:
            if isinstance(row.value, ProviderError):
                raise row.value
            item = item_of(row, _unique(id_of(row.value, columns), row, taken, repeated))
        except ProviderError as error:
            unusable.append((row.place, error))
            continue
        taken.add(item.id)
        items.append(item)
        if any(map(_GARBLED.search, _words(item))):
            garbled.append(row.place)
        if len(items) == limit:  # before the next row is read
            break
    if unusable and not (skip_unusable and items):
        raise _refused(name, what, unusable, len(items))
    if not items:
        raise ProviderError(f"{name}: there is no {what} in it", "add one a line")
    told = chain(_notes(name, unusable, repeated, len(items)), _more_notes(name, list(unread), garbled))
    return Loaded(tuple(items), tuple(told))


def _words(item: Prompt | Text) -> Iterator[str]:
    yield from (each["content"] for each in item.messages)
    if isinstance(item, Text):
        yield item.text


def _more_notes(source: str, unread: list[str], garbled: list[str]) -> Iterator[str]:
    if unread:
        more = ", ..." if len(unread) > NAMED else ""
        yield f"{source}: columns that are not read: {', '.join(each[:40] for each in unread[:NAMED])}{more}"
    if garbled:
        yield (
            f"{source}: {len(garbled):,} rows hold characters as a wrong encoding leaves them, as \ufffd or "
            f"\u00c3\u00bc (the first: {garbled[0]}): see whether the file was saved in UTF-8"
        )


def _rows(source: Source, columns: ColumnsConfig) -> tuple[str, Iterator[Row]]:
    """Its name, for people, and its rows."""
    wanted = known_columns(columns)
    if isinstance(source, Path) and not source.is_dir() and ending_of(source) != ".parquet":
        return str(source), rows_of_text(source, wanted)
    from bitnet_providers.prompts.parquet_and_dataset_rows import dataset_name, dataset_rows, parquet_rows

    if isinstance(source, Path) and source.is_dir():
        return str(source), dataset_rows(DatasetConfig(path=source), wanted)
    if isinstance(source, Path):
        return str(source), parquet_rows(source, wanted)
    return dataset_name(source), dataset_rows(source, wanted)


def _unique(own: str | None, row: Row, taken: set[str], repeated: list[str]) -> str:
    """The row's own id, with its number behind it where an earlier row has the same."""
    id_ = row.id if own is None else own
    if id_ in taken:
        if own is not None:
            repeated.append(row.place)
        numbered = (f"{id_}#{number}" for number in chain([row.id], count(2)))
        id_ = next(each for each in numbered if each not in taken)
    return id_


LEAVE_OUT = "or leave them out: skip_unusable = true beside the file's name (bitnet distil --skip-unusable)"
NAMED = 8
"""Lines and reasons that are told one by one."""


def _refused(name: str, what: str, unusable: list[tuple[str, ProviderError]], usable: int) -> ProviderError:
    """One error for all rows that can't be used: each reason with its lines."""
    leave_out = LEAVE_OUT if usable else ""
    place, first = unusable[0]
    if len(unusable) == 1:
        return ProviderError(f"{name}, {place}: {first.why}", "; ".join(filter(None, (first.fix, leave_out))))
    fixes = dict.fromkeys(error.fix for _, error in unusable)
    told = "\n".join(f"  {line}" for line in _reasons(unusable))
    return ProviderError(
        f"{name}: {len(unusable):,} of {usable + len(unusable):,} rows hold no {what} that can be used\n{told}\n",
        "; ".join([*list(fixes)[:3], *filter(None, [leave_out])]),
    )


def _reasons(unusable: list[tuple[str, ProviderError]]) -> Iterator[str]:
    """``line 3, 17 and 4 more: "prompt" is empty``"""
    places: dict[str, list[str]] = {}
    for place, error in unusable:
        places.setdefault(error.why, []).append(place)
    for why, where in list(places.items())[:NAMED]:
        numbers = ", ".join([where[0], *(each.rpartition(" ")[2] for each in where[1:NAMED])])
        more = f" and {len(where) - NAMED:,} more" if len(where) > NAMED else ""
        yield f"{numbers}{more}: {why}"
    if len(places) > NAMED:
        yield f"and {sum(map(len, list(places.values())[NAMED:])):,} more, for other reasons"


def _notes(name: str, unusable: list[tuple[str, ProviderError]], repeated: list[str], usable: int) -> Iterator[str]:
    if unusable:
        told = "; ".join(_reasons(unusable))
        yield f"{name}: {len(unusable):,} of {usable + len(unusable):,} rows are left out ({told})"
    if repeated:
        yield (
            f"{name}: {len(repeated):,} rows have the id of an earlier one (the first: {repeated[0]}): the number of "
            "the row stands behind it"
        )


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
    try:
        return read_prompts(config.prompts, config.columns, config.max_prompts, skip_unusable=config.skip_unusable)
    except ProviderError as error:
        raise ProviderError(error.why, error.fix.replace("collect.columns", "baseline.columns")) from error


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
        notes=tuple(dict.fromkeys(notes)),  # prompts and texts may be one file
    )


def _source(config: CollectConfig, what: str, file: Path | str | None) -> Source | None:
    dataset: DatasetConfig | None = config.dataset
    return dataset if dataset is not None and dataset.gives == what else None if file is None else Path(file)


def asked(messages: tuple[Message, ...], config: CollectConfig) -> tuple[Message, ...]:
    """A prompt's messages as the teacher is asked."""
    if config.prompt_template is not None:
        last = messages[-1]
        content = config.prompt_template.replace("{prompt}", last["content"])  # not format(): braces are common in both
        messages = (*messages[:-1], {**last, "content": content})
    return with_system_prompt(messages, config.system_prompt)


def with_system_prompt(messages: tuple[Message, ...], system_prompt: str | None) -> tuple[Message, ...]:
    """With a system prompt, where they have none of their own. A plain text (no messages) stays plain."""
    if system_prompt is None or not messages or messages[0]["role"] == "system":
        return messages
    return ({"role": "system", "content": system_prompt}, *messages)
