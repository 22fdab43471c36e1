"""What is wrong with a manifest's value, in words: cattrs' exceptions as problems, and what fixes an unknown key."""

import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import attrs
from cattrs.errors import (
    AttributeValidationNote,
    ClassValidationError,
    ForbiddenExtraKeysError,
    IterableValidationError,
    IterableValidationNote,
)

from bitnet_cli.errors import Problem, RefusedError
from bitnet_cli.wording.did_you_mean import did_you_mean, nearest
from bitnet_cli.wording.toml_values import got, key, literal, type_name


def problems_of(error: Exception, path: str, type_: Any, at: str = "") -> list[Problem]:
    """One each: ``train.steps: expected an integer, got 1.9 (a float)  → write steps = 2``.

    `at` is the key to write, empty inside an array.
    """
    if isinstance(error, ClassValidationError | IterableValidationError):
        problems = []
        for inner in error.exceptions:
            note = next(
                (
                    note
                    for note in getattr(inner, "__notes__", ())
                    if isinstance(note, AttributeValidationNote | IterableValidationNote)
                ),
                None,
            )
            assert isinstance(inner, Exception)
            if isinstance(note, AttributeValidationNote):
                problems += problems_of(inner, f"{path}.{note.name}", note.type, note.name)
            elif isinstance(note, IterableValidationNote) and isinstance(note.index, int):
                problems += problems_of(inner, f"{path}[{note.index}]", note.type)
            elif isinstance(note, IterableValidationNote):
                problems += problems_of(inner, f"{path}.{key(str(note.index))}", note.type, key(str(note.index)))
            else:
                problems += problems_of(inner, path, error.cl)
        return problems
    if isinstance(error, ForbiddenExtraKeysError):
        known = [field.name for field in attrs.fields(error.cl) if field.init]
        return [
            Problem(f"{path}.{key(name)}: unknown key", hint(name, known, path)) for name in sorted(error.extra_fields)
        ]
    if isinstance(error, KeyError):  # hooks raise RefusedError only, so this is cattrs looking for a key
        return [Problem(f"{path}: missing ({type_words(type_)})", f"write {at} = ...")]
    if isinstance(error, RefusedError):
        fix = error.fix
        if error.write is not None:
            fix = f"write {at} = {error.write}" if at else f"write {error.write}"
        return [Problem(f"{path}: {error.why}", fix)]
    return [Problem(f"{path}: {one_line(error)}")]


def type_words(type_: Any) -> str:
    """A type as a message names it: ``an integer``, ``a path``, ``an array``."""
    if get_origin(type_) in (Union, types.UnionType):
        return " or ".join(type_words(member) for member in get_args(type_) if member is not types.NoneType)
    if get_origin(type_) is Literal:
        return "one of " + ", ".join(literal(option) for option in get_args(type_))
    if get_origin(type_) in (tuple, list, Sequence):
        return "an array"
    if type_ is Path:
        return "a path"
    if type_ is float:
        return "a number"
    if type_ in (bool, int, str):
        return type_name(type_())
    return "a table"


def not_one_of(value: Any, options: Sequence[Any]) -> RefusedError:
    names = ", ".join(literal(option) for option in options)
    match = nearest(value, [o for o in options if isinstance(o, str)]) if isinstance(value, str) else None
    fix = "" if match is None else f'did you mean "{match}"?'
    return RefusedError(f"expected one of {names}, got {got(value)}", fix)


def validator_error(error: Exception, name: str, value: Any) -> RefusedError:
    """An attrs validator's message without the field's name (the path says it); ``in_`` gets a suggestion."""
    if name.endswith("_env"):
        return RefusedError("the validator refused it (not shown: it may be a key)")
    if isinstance(error, RefusedError):
        return error
    options = error.args[2] if len(error.args) == 4 and isinstance(error.args[2], tuple | list) else None
    if options and all(isinstance(option, str | int | float) for option in options):
        return not_one_of(value, options)
    return RefusedError(one_line(error).removeprefix(f"'{name}' "))


def one_line(error: BaseException) -> str:
    text = str(error.args[0]) if error.args and isinstance(error.args[0], str) else str(error)
    return " ".join(text.split()) or type(error).__name__


_EPOCHS = "train.steps counts batches: an epoch has documents / train.batch_size of them"
ELSEWHERE = {
    "lr": "train.learning_rate",
    "learning_rate": "train.learning_rate",
    "epochs": _EPOCHS,
    "num_epochs": _EPOCHS,
    "num_train_epochs": _EPOCHS,
    "max_steps": "train.steps",
    "per_device_train_batch_size": "train.batch_size",
    "micro_batch_size": "train.batch_size",
    "gradient_accumulation_steps": "train.accumulation",
    "max_seq_length": "train.max_seq_len",
    "max_length": "train.max_seq_len",
    "sequence_len": "train.max_seq_len",
    "max_grad_norm": "train.clip_norm",
    "warmup_ratio": "train.warmup_steps",
    "lr_scheduler_type": "train.schedule",
    "bf16": 'train.precision = "bf16"',
    "fp16": 'train.precision = "fp16"',
    "report_to": "train.track",
    "logging_steps": "train.log_every",
    "eval_steps": "train.validate_every",
    "save_steps": "train.checkpoint_every",
    "save_total_limit": "train.keep_checkpoints",
    "temperature": "collect.temperature for answers, loss.tau for the loss",
    "loss.temperature": "loss.tau",
    "loss.alpha": "loss.ce_weight",
    "seed": "run.seed",
    "output_dir": "store.root and run.name",
    "model_name_or_path": "teacher.model",
    "base_model": "teacher.model",
    "dataset_name": "collect.dataset.name",
    "datasets": "collect.prompts, collect.texts or [collect.dataset]",
}
"""A key as others write it → the key here, or what there is in its place."""


def hint(name: str, known: Sequence[str], section: str = "") -> str:
    """The fix for a key that is unknown in `section`: a near name, where it is here, or what there is."""
    plain = name.casefold().replace("-", "_")
    here = ELSEWHERE.get(f"{section}.{plain}", ELSEWHERE.get(plain))
    if here is None:
        return did_you_mean(name, known)
    return here if here is _EPOCHS else f"here it is {here}"
