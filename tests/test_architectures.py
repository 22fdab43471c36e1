"""Architectures of transformers as ternary models: every one of docs/other-architectures.md's table, and the table."""

from pathlib import Path

import pytest

from benchmarks.architectures import NAMES, Row, table, tried

A_LAYER = dict.fromkeys(NAMES, 7) | {"phi3": 4, "glm4": 6, "gpt_neox": 4, "gpt2": 4}
"""Linears of a layer as the architectures' papers have them: q, k, v, o, gate, up, down; fused ones count once."""


@pytest.fixture(scope="module")
def rows() -> dict[str, Row]:
    return {name: tried(name) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_every_linear_of_the_decoder_is_ternary_and_without_quantisation_the_model_is_as_it_was(
    rows: dict[str, Row], name: str
) -> None:
    row = rows[name]
    assert (row.layers, row.ternary, row.others, row.left_out) == (2, 2 * A_LAYER[name], 0, ())
    assert row.difference <= 1e-5
    assert row.quantised > 0.1


def test_the_table_in_the_docs_is_what_the_command_writes() -> None:
    page = Path(__file__).parents[1] / "docs/other-architectures.md"
    assert table() in page.read_text(encoding="utf-8")
