"""`bitnet_cli.run`'s settings are laid over the manifest as they are."""

from pathlib import Path
from typing import Any

import pytest

from bitnet_cli.errors import UserError
from bitnet_cli.manifest.overrides import parse_override
from bitnet_cli.pipeline.from_python import _toml


@pytest.mark.parametrize(
    "value",
    [
        200, 1.5, True, "a\nb", 'q"uote', [], [1, 2], ["x" * 60] * 3, {}, {"kind": "jsd", "beta": 0.5},
        {"odd key": {"deep": [{"a": 1}, {"b": "x" * 120}]}},
    ],
)  # fmt: skip
def test_a_value_arrives_as_it_is(value: Any) -> None:
    assert parse_override(f"a.b={_toml(value)}") == ("a.b", value)
    assert "\n" not in _toml(value), "it is a part of the command that goes on"


def test_paths_and_tuples_become_what_a_manifest_has() -> None:
    assert parse_override(f"a={_toml({'folders': (Path('x'), Path('y'))})}") == ("a", {"folders": ["x", "y"]})


@pytest.mark.parametrize("value", [None, [None], {"a": object()}])
def test_what_no_manifest_can_say_is_refused(value: Any) -> None:
    with pytest.raises(UserError, match="can't stand in a manifest"):
        _toml(value)
