"""The cache of keys and values, by the name that the installed transformers has for it.

transformers 5.24 renames `past_key_values` to `cache`, in arguments and outputs; from 5.40 on the old name is gone.
"""

import dataclasses
from typing import Any

from transformers.modeling_outputs import BaseModelOutputWithPast

_IS_NEW = any(field.name == "cache" for field in dataclasses.fields(BaseModelOutputWithPast))
NAME = "cache" if _IS_NEW else "past_key_values"


def named(cache: Any) -> dict[str, Any]:
    """As a keyword argument of transformers' models, layers, masks and outputs."""
    return {NAME: cache}


def cache_of(output: Any) -> Any:
    """What an output of a model holds."""
    return getattr(output, NAME)


def either(cache: Any, past_key_values: Any) -> Any:
    """Of a forward's two arguments the one that is given. Raises ValueError for two different ones."""
    if cache is not None and past_key_values is not None and cache is not past_key_values:
        raise ValueError("give the cache once: as cache, or as past_key_values")
    return past_key_values if cache is None else cache
