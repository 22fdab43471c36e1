from bitnet_cli.errors import UserError


def test_one_problem_is_its_own_message() -> None:
    error = UserError("train.steps: missing")
    assert error.problems == ("train.steps: missing",)
    assert str(error) == "train.steps: missing"


def test_a_headline_stands_over_its_problems() -> None:
    assert str(UserError(["a", "b"], headline="m.toml: 2 problems")) == "m.toml: 2 problems\n  a\n  b"
    assert str(UserError(["a", "b"])) == "a\nb"
