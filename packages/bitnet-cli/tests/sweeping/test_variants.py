"""Settings and values into variants."""

import pytest

from bitnet_cli.errors import ProblemsError, UserError
from bitnet_cli.sweeping.variants import parse_over, variants


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("train.learning_rate=1e-4,2e-4", ("1e-4", "2e-4")),
        ("train.learning_rate = 1e-4 , 2e-4", ("1e-4", "2e-4")),
        ("student.init_from=teacher,other", ("teacher", "other")),
        ('a.b="x, y","z"', ('"x, y"', '"z"')),
        ("a.b=[1, 2],[3]", ("[1, 2]", "[3]")),
        ("train.steps=5", ("5",)),
    ],
)
def test_values_are_those_of_set(text: str, values: tuple[str, ...]) -> None:
    assert parse_over(text).values == values


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("train.steps", "expected KEY=VALUE,VALUE"),
        ("train.steps=", "expected KEY=VALUE,VALUE"),
        ("run.name=a,b", "this is no setting of a student"),
        ("store.root=a,b", "this is no setting of a student"),
        ("train.steps=1,2,1", "1 stands there twice"),
        ('a.b="x,y', "--over a.b"),
    ],
)
def test_what_is_wrong_is_told(text: str, why: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_over(text)
    assert why in str(caught.value)
    assert "--set" not in str(caught.value)
    assert caught.value.fix


def test_every_choice_is_a_run_with_a_name_of_its_own() -> None:
    found = variants("base", ["train.learning_rate=1e-4,2e-4", "loss.tau=1.0,2.0"])
    assert [each.name for each in found] == [
        "base-learning_rate-1e-4-tau-1.0",
        "base-learning_rate-1e-4-tau-2.0",
        "base-learning_rate-2e-4-tau-1.0",
        "base-learning_rate-2e-4-tau-2.0",
    ]
    assert found[1].label == "train.learning_rate = 1e-4, loss.tau = 2.0"
    assert found[1].settings == (
        "train.learning_rate=1e-4",
        "loss.tau=2.0",
        'run.name="base-learning_rate-1e-4-tau-2.0"',
    )


def test_names_that_would_be_the_same_or_too_long_are_numbered() -> None:
    assert [each.name for each in variants("base", ['a.b="x y","x/y"'])] == ["base-1", "base-2"]
    assert [each.name for each in variants("base", [f"a.b={'x' * 200},y"])] == ["base-1", "base-2"]


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ProblemsError) as caught:
        variants("base", ["a.b", "c.d="])
    assert len(caught.value.problems) == 2
    with pytest.raises(ProblemsError, match=r"a\.b: stands there twice"):
        variants("base", ["a.b=1", "a.b=2"])
