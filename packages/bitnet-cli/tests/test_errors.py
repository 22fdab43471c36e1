"""Every error for people says what is wrong and, apart from it, what to do; few sites know no fix."""

import ast
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import bitnet_cli
from bitnet_cli.errors import Problem, ProblemsError, RefusedError, UserError, problem_of
from bitnet_cli.pipeline.from_python import RunFailedError
from bitnet_cli.plugins.load import RejectedError
from bitnet_cli.serving.openai_request import ApiError

SOURCE = Path(bitnet_cli.__file__).parent
IMPERATIVE = re.compile(
    r"[;:.] (add|check|choose|correct|drop|export|free|give|install|leave|make|move|name|pip|point|pull|push|put|"
    r"quote|remove|rename|run|send|set|stop|unset|upgrade|use|wait|write) ",
    re.IGNORECASE,
)
WHY_AT = {
    "UserError": 0, "RunFailedError": 0, "RejectedError": 0, "RefusedError": 0, "StorageError": 0, "Problem": 0,
    "ApiError": 1, "refused": 1,
}  # fmt: skip
"""What makes an error → the position of its `why`; the fix stands behind it."""
NOTHING_HELPS = {
    ("manifest/check_values.py", "expected "),  # what is expected is what to write
    ("manifest/messages.py", "the validator refused it"),
    ("manifest/messages.py", "…: …"),  # a validator's own words
    ("manifest/messages.py", "…"),
    ("pipeline/consent.py", "nothing was done"),
    ("pipeline/make_plan.py", "… can't run: …"),
    ("pipeline/make_plan.py", "does not fit collect.targets"),  # the loss has the fix in its text
    ("serving/openai_request.py", "expected "),
}
"""(file, a piece of the message) where nothing is known to help, or what is wrong says it already."""


def error_sites() -> Iterator[tuple[str, str, bool]]:
    """(file, the message with ``…`` for what is filled in, whether a fix stands beside it)."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = getattr(node.func, "id", getattr(node.func, "attr", "")) if isinstance(node, ast.Call) else ""
            if isinstance(node, ast.Call) and name in WHY_AT and len(node.args) > WHY_AT[name]:
                has_fix = (
                    len(node.args) > WHY_AT[name] + 1
                    or any(word.arg in ("fix", "write") for word in node.keywords)
                    or any(
                        isinstance(each, ast.Starred) for each in node.args
                    )  # another error's why and fix, as a pair
                )
                yield path.relative_to(SOURCE).as_posix(), literal(node.args[WHY_AT[name]]), has_fix


def literal(node: ast.expr) -> str:
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts)


def known_piece(file: str, text: str) -> str:
    """The list's piece that stands for this message (one of "…" alone only where nothing else is in it)."""
    pieces = [piece for name, piece in NOTHING_HELPS if name == file and (piece == text or piece.strip("…: ") in text)]
    return text if text in pieces else next((piece for piece in pieces if piece.strip("…: ")), text)


def test_every_error_has_a_fix_or_is_known_to_have_none() -> None:
    sites = list(error_sites())
    assert len(sites) > 120
    assert {(file, known_piece(file, text)) for file, text, has_fix in sites if not has_fix} == NOTHING_HELPS


def test_no_fix_hides_in_what_is_wrong() -> None:
    hiding = [(file, text) for file, text, _ in error_sites() if "→" in text or IMPERATIVE.search(text)]
    assert hiding == []


@pytest.mark.parametrize("kind", [UserError, RejectedError, RunFailedError, RefusedError])
def test_the_text_and_its_parts_survive_pickling(kind: type[UserError]) -> None:
    again = pickle.loads(pickle.dumps(kind("train.steps: missing", "write steps = 20")))
    assert type(again) is kind
    assert (again.why, again.fix) == ("train.steps: missing", "write steps = 20")
    assert str(again) == "train.steps: missing  → write steps = 20"
    assert str(kind("no such thing")) == "no such thing"


def test_one_problem_is_its_own_message() -> None:
    assert UserError("train.steps: missing", "write it").problems == (Problem("train.steps: missing", "write it"),)
    assert str(Problem("missing", "write it").within("train.steps")) == "train.steps: missing  → write it"


def test_a_headline_stands_over_its_problems() -> None:
    error = ProblemsError([Problem("a", "b"), Problem("c"), Problem("d", "b")], headline="m.toml: 3 problems")
    for each in (error, pickle.loads(pickle.dumps(error))):
        assert str(each) == "m.toml: 3 problems\n  a  → b\n  c\n  d  → b"
        assert each.why == "m.toml: 3 problems\n  a\n  c\n  d"
        assert each.fix == "b"
        assert each.problems == (Problem("a", "b"), Problem("c"), Problem("d", "b"))
    assert str(ProblemsError([Problem("a", "b"), Problem("c")])) == "a  → b\nc"


def test_a_run_that_failed_has_the_whole_message() -> None:
    again = pickle.loads(pickle.dumps(RunFailedError("why", "fix", "stage train failed: why  → fix\ngo on with: x")))
    assert (again.why, again.fix) == ("why", "fix")
    assert str(again).endswith("go on with: x")


def test_an_error_of_the_api_has_its_fix_in_the_answer() -> None:
    again = pickle.loads(pickle.dumps(ApiError(400, "stop: is empty", "leave it out", "stop")))
    assert (again.status, again.why, again.fix, again.param) == (400, "stop: is empty", "leave it out", "stop")
    assert again.body()["error"]["message"] == str(again) == "stop: is empty  → leave it out"


def test_any_error_can_be_a_problem() -> None:
    assert problem_of(UserError("why", "fix")) == Problem("why", "fix")
    assert problem_of(ValueError("odd")) == Problem("odd")
