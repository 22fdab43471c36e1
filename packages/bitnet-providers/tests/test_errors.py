"""An error's why and fix are apart, everywhere in the package."""

import ast
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

import bitnet_providers
from bitnet_providers.contract import ProviderError, RequestRefusedError, RetryableError
from bitnet_providers.spending.budget import BudgetReachedError

SOURCE = Path(bitnet_providers.__file__).parent
KINDS = {kind.__name__ for kind in (ProviderError, RequestRefusedError, RetryableError, BudgetReachedError)}

NO_FIX = (
    # Asked again; who gives up (`retry`, `collect.ask`) says what to do.
    ("teachers/common/http_errors.py", "told"),
    ("teachers/common/http_errors.py", "{who} was not reached: {reason}"),
    ("teachers/openai_compatible/answer.py", 'the server broke the answer off (finish_reason "{reason}")'),
    # What the server or its SDK says is all that is known.
    ("teachers/common/http_errors.py", "{who}: the answer has another shape than a completion's: {reason}"),
    ("teachers/anthropic/teacher.py", "{WHO}: {self._redact(error)}"),
    ("teachers/gemini/teacher.py", "{WHO}: {self._redact(error)}"),
)
"""(file, first argument) where nothing is known to help."""

IMPERATIVE = re.compile(
    r"[;:.,] (add|ask|change|check|copy|correct|download|export|fill|free|get|give|install|leave|lower|make|mend|move"
    r"|name|open|pick|pip|point|put|raise|remove|report|run|save|see|set|shorten|take|top|try|unset|use|wait|write) "
)


@attrs.frozen
class Site:
    """Where an error is made."""

    file: str
    line: int
    why: str
    """The first argument as it stands in the source, without quotes at its pieces' ends."""
    has_fix: bool


def sites(tree: ast.AST, file: str) -> Iterator[Site]:
    """Every construction of one of the package's errors: raised, returned or kept for later."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS:
            given = [*node.args, *(each.value for each in node.keywords if each.arg in ("why", "fix"))]
            literals = (each.value for each in given[1:2] if isinstance(each, ast.Constant))
            yield Site(file, node.lineno, _text(given[0]), len(given) > 1 and "" not in literals)


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(each.value) if isinstance(each, ast.Constant) else f"{{{ast.unparse(each.value)}}}"
            for each in node.values
            if isinstance(each, ast.Constant | ast.FormattedValue)
        )
    return ast.unparse(node)


SITES = [
    site
    for path in sorted(SOURCE.rglob("*.py"))
    for site in sites(ast.parse(path.read_text(encoding="utf-8")), path.relative_to(SOURCE).as_posix())
]


def is_excused(site: Site) -> bool:
    return (site.file, site.why) in NO_FIX


def test_no_kind_of_error_is_forgotten() -> None:
    def heirs(kind: type[ProviderError]) -> set[str]:
        return {kind.__name__}.union(*(heirs(each) for each in kind.__subclasses__()))

    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and {ast.unparse(base).split(".")[-1] for base in node.bases} & KINDS:
                assert node.name in KINDS, f"{path}: {node.name}"
    assert heirs(ProviderError) >= KINDS


def test_every_error_says_what_to_do() -> None:
    assert len(SITES) > 100
    silent = [f"{site.file}:{site.line}: {site.why}" for site in SITES if not site.has_fix and not is_excused(site)]
    assert silent == []


def test_the_list_of_the_fixless_is_no_longer_than_it_must_be() -> None:
    assert {(site.file, site.why) for site in SITES if not site.has_fix} == set(NO_FIX)


def test_no_fix_stands_in_the_why() -> None:
    mixed = [f"{site.file}:{site.line}: {site.why}" for site in SITES if "→" in site.why or IMPERATIVE.search(site.why)]
    assert mixed == []


@pytest.mark.parametrize(
    ("source", "has_fix"),
    [
        ('raise ProviderError("why")', False),
        ('raise ProviderError("why", "")', False),
        ('raise ProviderError("why", "do this")', True),
        ('return RetryableError("why", fix="do this", overloaded=True)', True),
        ('failure = RetryableError(f"{who} why", overloaded=True)', False),
    ],
)
def test_the_walk_finds_what_is_missing(source: str, has_fix: bool) -> None:
    (site,) = sites(ast.parse(f"def f(): {source}" if "return" in source else source), "x.py")
    assert site.has_fix is has_fix


@pytest.mark.parametrize("kind", [ProviderError, RequestRefusedError, RetryableError, BudgetReachedError])
def test_why_and_fix(kind: type[ProviderError]) -> None:
    error = kind("x is 3", "lower x")
    assert (str(error), error.why, error.fix) == ("x is 3  → lower x", "x is 3", "lower x")
    assert (str(kind("x is 3")), kind("x is 3").fix) == ("x is 3", "")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.why, copy.fix, str(copy)) == (kind, "x is 3", "lower x", "x is 3  → lower x")


def test_what_a_retryable_error_knows_survives() -> None:
    error = RetryableError("429", retry_after_s=3.0, overloaded=True, possibly_paid=True, answered=True)
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.retry_after_s, copy.overloaded, copy.possibly_paid, copy.answered) == (3.0, True, True, True)


def test_an_error_keeps_its_cause() -> None:
    cause = OSError("no such file")
    with pytest.raises(ProviderError) as caught:
        raise ProviderError("x can't be read", "name another file") from cause
    assert caught.value.__cause__ is cause
