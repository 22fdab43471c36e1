"""TOML values into frozen attrs classes, strictly: no coercion but int to float, every problem at once.

cattrs walks the types; the hooks below replace its default coercions (1.9 becoming 1, "false" becoming True);
`messages` turns its exception groups into problems.
"""

import math
import re
import types
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import attrs
import cattrs
import tomli
from cattrs.errors import (
    IterableValidationError,
    IterableValidationNote,
    StructureHandlerNotFoundError,
)
from cattrs.gen import make_dict_structure_fn, override

from bitnet_cli.errors import Problem, RefusedError
from bitnet_cli.manifest.messages import not_one_of, one_line, problems_of, type_words, validator_error
from bitnet_cli.manifest.paths import absolute
from bitnet_cli.wording.hide_secrets import looks_like_key
from bitnet_cli.wording.toml_values import got, literal
from bitnet_providers.hub.names import hub_name

T = TypeVar("T")
Hook = Callable[[Any, Any], Any]

_INT64 = 2**63
_ENV_NAME = re.compile(r"[A-Z_][A-Z0-9_]{0,127}")
_LONG_WORD = re.compile(r"[A-Z0-9]{24,}")


class NeedsOtherFieldsError(AttributeError):
    """A validator looked at another field; it runs again when the whole object is built."""


def structure(table: Any, cls: type[T], converter: cattrs.Converter, path: str, problems: list[Problem]) -> T | None:
    """One section as its type; what is wrong is appended to `problems` and None returned."""
    try:
        return converter.structure(table, cls)
    except StructureHandlerNotFoundError as error:
        problems.append(
            Problem(f"{path}: {cls.__name__} has a field that can't be filled: {one_line(error)}", "tell its author")
        )
    except Exception as error:
        problems.extend(problems_of(error, path, cls))
    return None


def strict_converter(environment: Mapping[str, str]) -> cattrs.Converter:
    """A cattrs converter with the manifest's rules; `environment` fills ``${VAR}`` in paths."""
    converter = cattrs.Converter(detailed_validation=True, forbid_extra_keys=True)
    paths = cattrs.Converter(detailed_validation=True, forbid_extra_keys=True)

    def path_hook(value: Any, _: Any) -> Path:
        return _path(value, environment)

    for one in (converter, paths):
        one.register_structure_hook_factory(_is_other_type)(_refuse_type)  # first: what is registered later goes before
        one.register_structure_hook(bytes, _refuse_bytes)
        _register_containers(one)
        one.register_structure_hook(bool, _bool)
        one.register_structure_hook(int, _int)
        one.register_structure_hook(float, _float)
        one.register_structure_hook(Path, path_hook)
        one.register_structure_hook_func(lambda type_: type_ is Any, _anything)
    converter.register_structure_hook(str, _str)
    paths.register_structure_hook(str, lambda value, _: str(_path(value, environment)))

    def attrs_hook(cls: type, of: cattrs.Converter) -> Hook:
        attrs.resolve_types(cls)
        hooks = {
            field.name: override(struct_hook=_field_hook(field, paths if field.metadata.get("path") else of))
            for field in attrs.fields(cls)
            if field.init
        }
        from_table: Hook = make_dict_structure_fn(
            cls,
            of,
            _cattrs_forbid_extra_keys=True,
            _cattrs_detailed_validation=True,
            _cattrs_use_linecache=False,
            **hooks,  # type: ignore[arg-type]
        )

        def hook(value: Any, type_: Any) -> Any:
            if not isinstance(value, dict):
                raise RefusedError(f"expected a table, got {got(value)}")
            return from_table(value, type_)

        return hook

    for one in (converter, paths):
        one.register_structure_hook_factory(attrs.has)(attrs_hook)
    return converter


def _is_other_type(type_: Any) -> bool:
    """Types that cattrs would coerce to (sets, bytes, deques ...); Enum, Annotated and NewType lead to a type below."""
    return not (isinstance(type_, type) and issubclass(type_, Enum)) and get_origin(type_) is not Annotated


def _refuse_type(type_: Any) -> Hook:
    raise StructureHandlerNotFoundError(f"a manifest can't hold {type_}", type_)


def _refuse_bytes(_: Any, __: Any) -> Any:
    raise RefusedError("the plugin's options ask for bytes, which TOML doesn't have", fix="tell its author")


# Scalars


def _bool(value: Any, _: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise RefusedError(f"expected true or false, got {got(value)}", write=_unquoted(value, bool))


def _int(value: Any, _: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        if -_INT64 <= value < _INT64:
            return value
        raise RefusedError("the integer does not fit in 64 bits", "write a smaller one")
    write = _unquoted(value, int)
    if isinstance(value, float) and math.isfinite(value) and abs(value) < _INT64:
        write = str(round(value))
    raise RefusedError(f"expected an integer, got {got(value)}", write=write)


def _float(value: Any, _: Any) -> float:
    if isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool)):
        if isinstance(value, int) and abs(value) >= _INT64:
            raise RefusedError("the integer does not fit in 64 bits", "write a smaller one")
        if math.isfinite(value):
            return float(value)
        raise RefusedError(f"expected a finite number, got {value}")
    raise RefusedError(f"expected a number, got {got(value)}", write=_unquoted(value, int, float))


def _str(value: Any, _: Any) -> str:
    if not isinstance(value, str):
        scalar = isinstance(value, bool | int | float)
        write = literal(str(literal(value))) if scalar else None
        raise RefusedError(f"expected a string, got {got(value)}", write=write)
    if looks_like_key(value):
        raise RefusedError(
            "this looks like an API key", fix="put it in .env and write the variable's name in a *_env key"
        )
    if "${" in value:
        raise RefusedError("${...} is expanded in paths only", fix="write the value itself")
    return str(value)  # a plain str: it need not remember its file any more


def _path(value: Any, environment: Mapping[str, str]) -> Path:
    if not isinstance(value, str):
        raise RefusedError(f"expected a path in quotes, got {got(value)}")
    if looks_like_key(value):
        raise RefusedError(
            "this looks like an API key", fix="put it in .env and write the variable's name in a *_env key"
        )
    return absolute(value, environment)


def _env_name(value: Any) -> None:
    """Refuse what is not a variable's name, without repeating it: it may be a secret."""
    named = isinstance(value, str) and _ENV_NAME.fullmatch(value) is not None
    if named and not looks_like_key(value) and not _LONG_WORD.search(value):
        return
    raise RefusedError(
        "expected the name of an environment variable (A-Z, 0-9, _), and this is not one (not shown: it may be a key)",
        fix='put the key in .env as SOME_API_KEY=..., and write the name "SOME_API_KEY" here',
    )


def _anything(value: Any, _: Any) -> Any:
    """A field of type Any: TOML's own values, with the string rules."""
    match value:
        case str():
            return _str(value, str)
        case list():
            return [_anything(item, Any) for item in value]
        case dict():
            return {name: _anything(item, Any) for name, item in value.items()}
    return value


def _unquoted(value: Any, *wanted: type) -> str | None:
    """What to write where a string holds the very value that was wanted: ``"200"`` -> ``200``."""
    if not isinstance(value, str) or len(value) > 40 or "\n" in value:
        return None
    try:
        inner = tomli.loads(f"v = {value}")["v"]
    except (ValueError, KeyError, RecursionError):
        return None
    return value.strip() if type(inner) in wanted else None


# Containers


def _register_containers(converter: cattrs.Converter) -> None:
    for origins, factory in (
        ((Literal,), _literal_hook),
        ((Union, types.UnionType), _union_hook),
        ((tuple, list, Sequence), _array_hook),
        ((dict, Mapping), _mapping_hook),
    ):
        converter.register_structure_hook_factory(_has_origin(origins))(factory)


def _has_origin(origins: tuple[Any, ...]) -> Callable[[Any], bool]:
    return lambda type_: get_origin(type_) in origins


def _literal_hook(type_: Any, _: cattrs.Converter) -> Hook:
    options = get_args(type_)

    def hook(value: Any, _: Any) -> Any:
        for option in options:
            if type(option) is type(str(value) if isinstance(value, str) else value) and option == value:
                return option
        raise not_one_of(value, options)

    return hook


def _union_hook(type_: Any, converter: cattrs.Converter) -> Hook:
    """The first member that takes the value as it is; TOML has no null, so None is only ever a default."""
    members = [member for member in get_args(type_) if member is not types.NoneType]
    hooks = [(member, converter.get_structure_hook(member)) for member in members]

    def hook(value: Any, _: Any) -> Any:
        refusals: list[Exception] = []
        for member, member_hook in hooks:
            try:
                return member_hook(value, member)
            except Exception as error:
                refusals.append(error)
        if len(refusals) == 1:
            raise refusals[0]
        for refusal in refusals:  # where the type fits one member and its content does not, that message helps
            if isinstance(refusal, RefusedError) and not refusal.why.startswith("expected"):
                raise refusal
        names = " or ".join(type_words(member) for member in members)
        raise RefusedError(f"expected {names}, got {got(value)}")

    return hook


def _array_hook(type_: Any, converter: cattrs.Converter) -> Hook:
    container = list if get_origin(type_) is list else tuple
    arguments = get_args(type_)
    fixed = get_origin(type_) is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis)
    item_hooks = [converter.get_structure_hook(item) for item in arguments if item is not Ellipsis]

    def hook(value: Any, _: Any) -> Any:
        if not isinstance(value, list):
            shown = _in_brackets(value, item_hooks[0], arguments[0]) if "(" in got(value) else None
            raise RefusedError(f"expected an array, got {got(value)}", write=shown)
        if fixed and len(value) != len(item_hooks):
            raise RefusedError(f"expected an array of {len(item_hooks)}, got one of {len(value)}")
        items, errors = [], []
        for index, item in enumerate(value):
            which = index if fixed else 0
            try:
                items.append(item_hooks[which](item, arguments[which]))
            except Exception as error:
                error.add_note(IterableValidationNote("", index, arguments[which]))
                errors.append(error)
        if errors:
            raise IterableValidationError("while structuring an array", errors, container)
        return container(items)

    return hook


def _in_brackets(value: Any, hook: Hook, type_: Any) -> str | None:
    """What to write for an array of this one item; None: it takes no such item."""
    try:
        hook(value, type_)
    except Exception:
        return None
    return f"[{literal(value)}]" if isinstance(value, bool | int | float | str) else None


def _mapping_hook(type_: Any, converter: cattrs.Converter) -> Hook:
    value_type = get_args(type_)[1]
    value_hook = converter.get_structure_hook(value_type)

    def hook(value: Any, _: Any) -> Any:
        if not isinstance(value, dict):
            raise RefusedError(f"expected a table, got {got(value)}")
        items, errors = {}, []
        for name, item in value.items():
            try:
                items[name] = value_hook(item, value_type)
            except Exception as error:
                error.add_note(IterableValidationNote("", name, value_type))
                errors.append(error)
        if errors:
            raise IterableValidationError("while structuring a table", errors, dict)
        return items

    return hook


# Fields


class _NoFields:
    """Stands in for the object while a single field is validated."""

    def __getattr__(self, name: str) -> Any:
        raise NeedsOtherFieldsError(name)


def _field_hook(field: "attrs.Attribute[Any]", converter: cattrs.Converter) -> Hook:
    """The type's hook, then the field's own validator, so that each field's problem is found and not only the first."""
    type_ = Any if field.type is None else field.type
    inner = converter.get_structure_hook(type_)
    # A path field may also take words: those that it names ("baseline"); where its type is str, its default (a built-in
    # model, "teacher") and "", which is no path.
    words = field.metadata.get("words", ())
    if field.metadata.get("path") and type_ is str:
        words = (*words, field.default, "")

    def hook(value: Any, _: Any) -> Any:
        if field.name.endswith("_env"):
            _env_name(value)
        is_word = isinstance(value, str) and (value in words or (field.metadata.get("hub") and _on_the_hub(value)))
        structured = str(value) if is_word else inner(value, type_)
        if field.validator is not None:
            try:
                field.validator(_NoFields(), field, structured)
            except NeedsOtherFieldsError:
                pass
            except Exception as error:
                raise validator_error(error, field.name, value) from error
        return structured

    return hook


def _on_the_hub(value: str) -> bool:
    """Whether it is a name of the Hugging Face Hub, and no folder or file is called so."""
    return hub_name(value) is not None and not absolute(value, {}).exists()
