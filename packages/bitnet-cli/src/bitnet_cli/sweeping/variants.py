"""From ``--over train.learning_rate=1e-4,2e-4`` to the runs that are meant: a variant for each choice of values."""

import itertools
import re
from collections.abc import Sequence

import attrs
import tomli

from bitnet_cli.errors import Problem, ProblemsError, UserError
from bitnet_cli.manifest.overrides import parse_override
from bitnet_cli.wording.toml_values import literal

NOT_SWEPT = ("run.name", "run.stages", "store", "cluster", "extends")
"""Tables and keys that say where and how the runs are made, not what they are."""
LONGEST_NAME = 100


@attrs.frozen
class Over:
    """A setting and the values that it takes in turn."""

    key: str
    values: tuple[str, ...]
    """As TOML writes them, or bare words."""


@attrs.frozen
class Variant:
    """One run of the sweep."""

    name: str
    """Its `run.name`."""
    settings: tuple[str, ...]
    """The texts of ``--set`` that make it, the name's among them."""
    label: str
    """What sets it apart, for people."""


def parse_over(text: str) -> Over:
    """``train.learning_rate=1e-4,2e-4`` → its key and values. Raises UserError.

    A value may be anything that ``--set`` takes; where it holds a comma itself, all of them are written as TOML does.
    """
    key, equals, listed = (part.strip() for part in text.partition("="))
    if not equals or not listed:
        raise UserError(f"--over {key}: expected KEY=VALUE,VALUE", "write it like --over train.learning_rate=1e-4,2e-4")
    if any(key == each or key.startswith(f"{each}.") for each in NOT_SWEPT):
        raise UserError(f"--over {key}: this is no setting of a student", "sweep another one")
    values = _as_toml(listed) or tuple(part.strip() for part in listed.split(","))
    for value in values:
        try:
            parse_override(f"{key}={value}")
        except UserError as error:
            raise UserError(error.why.replace("--set", "--over"), error.fix.replace("--set", "--over")) from None
    if len(set(values)) < len(values):
        twice = next(value for value in values if values.count(value) > 1)
        raise UserError(f"--over {key}: {twice} stands there twice", "write each value once")
    return Over(key, values)


def variants(base: str, overs: Sequence[str]) -> tuple[Variant, ...]:
    """Every choice of a value of each; `base` is the manifest's own `run.name`. Raises UserError with all problems."""
    problems: list[Problem] = []
    parsed: list[Over] = []
    for text in overs:
        try:
            parsed.append(parse_over(text))
        except UserError as error:
            problems += error.problems
    keys = [over.key for over in parsed]
    problems += [
        Problem(f"--over {key}: stands there twice", "write all its values into one")
        for key in dict.fromkeys(keys)
        if keys.count(key) > 1
    ]
    if problems:
        raise ProblemsError(problems)
    chosen = [tuple(zip(keys, values, strict=True)) for values in itertools.product(*(over.values for over in parsed))]
    names = _names(base, chosen)
    return tuple(
        Variant(
            name,
            (*(f"{key}={value}" for key, value in choice), f"run.name={literal(name)}"),
            ", ".join(f"{key} = {value}" for key, value in choice),
        )
        for name, choice in zip(names, chosen, strict=True)
    )


def _as_toml(listed: str) -> tuple[str, ...]:
    """The items of a TOML array, each as it was written; none where it is none, e.g. for bare words."""
    try:
        tomli.loads(f"value = [{listed}]")
    except (tomli.TOMLDecodeError, RecursionError, ValueError):
        return ()
    items, start = [], 0
    for end in [*(match.start() for match in re.finditer(",", listed)), len(listed)]:
        item = listed[start:end].strip()
        try:
            tomli.loads(f"value = {item}")
        except tomli.TOMLDecodeError:  # the comma stands within a value
            continue
        items.append(item)
        start = end + 1
    return tuple(items)


def _names(base: str, chosen: Sequence[tuple[tuple[str, str], ...]]) -> list[str]:
    """``base-learning_rate-1e-4``; numbered where that would be too long, or two the same."""
    names = ["-".join([base, *(_plain(f"{key.rpartition('.')[2]}-{value}") for key, value in each)]) for each in chosen]
    if max(map(len, names)) > LONGEST_NAME or len({name.casefold() for name in names}) < len(names):
        return [f"{base}-{number + 1}" for number in range(len(chosen))]
    return names


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("_")
