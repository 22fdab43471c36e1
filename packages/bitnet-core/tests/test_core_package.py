"""What the package promises as a whole: its public names, and that what its plugins load lazily is there."""

from functools import partial
from pkgutil import resolve_name

import attrs
import pytest

import bitnet_core
from bitnet_core import plugin
from bitnet_core.runtime.open import RUNTIMES


def test_every_public_name_is_there() -> None:
    for name in bitnet_core.__all__:
        assert getattr(bitnet_core, name).__name__ == name
        assert getattr(bitnet_core, name).__doc__, f"help(bitnet_core.{name}) says nothing"
    assert dir(bitnet_core) == sorted(bitnet_core.__all__)
    with pytest.raises(AttributeError, match="module 'bitnet_core' has no attribute 'nothing'"):
        bitnet_core.nothing  # noqa: B018


def test_every_lazy_function_is_there() -> None:
    records = [*plugin.bitnet_losses(), *plugin.bitnet_exporters(), *plugin.bitnet_benchmarks(), *RUNTIMES.values()]
    lazy = [each for record in records for each in attrs.astuple(record, recurse=False) if isinstance(each, partial)]
    assert len(lazy) > len(RUNTIMES)
    for each in lazy:
        assert callable(resolve_name(each.args[0]))
