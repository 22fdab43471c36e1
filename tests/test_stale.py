"""Stored figures say what made them, and are told when that has changed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import stale

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one benchmark, which counts the letters of its one source."""
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "benchmarks" / "__init__.py").write_text("")
    (tmp_path / "benchmarks" / "letters.py").write_text(
        "import json, pathlib\n"
        "print('counting')\n"
        "print(json.dumps({'letters': len(pathlib.Path('source/text.txt').read_text())}, indent=1))\n"
    )
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "text.txt").write_text("four")
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a", "commit", "-qm", "one"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(stale, "ROOT", tmp_path)
    monkeypatch.setattr(stale, "RESULTS", tmp_path / "benchmarks" / "results")
    monkeypatch.setattr(stale, "BENCHMARKS", {"letters": stale.Figures(("source",), cheap=True)})
    return tmp_path


def listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[object, str]:
    """Exit status and output."""
    monkeypatch.setattr(sys, "argv", ["benchmarks/stale.py", *options])
    with pytest.raises(SystemExit) as ended:
        stale.main()
    return ended.value.code, capsys.readouterr().out


def test_a_result_holds_until_its_sources_change(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert listed(monkeypatch, capsys) == (1, "letters: not there yet (cheap: --run makes it again)\n")
    assert listed(monkeypatch, capsys, "--run") == (0, "")
    record = json.loads((tree / "benchmarks/results/letters.json").read_text())
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tree, capture_output=True, text=True).stdout.strip()
    assert record["letters"] == 4
    assert record["made_by"]["command"] == "python -m benchmarks.letters"
    assert record["made_by"]["commit"] == commit
    (tree / "elsewhere.txt").write_text("no source of this benchmark")
    assert listed(monkeypatch, capsys) == (0, "")
    (tree / "source" / "more.txt").write_text("a new file among the sources")
    status, said = listed(monkeypatch, capsys)
    assert (status, said.startswith(f"letters: its sources have changed since {commit[:12]}")) == (1, True)


def test_results_that_say_nothing_or_that_nobody_knows_are_listed(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tree / "benchmarks/results/letters.json").write_text('{"letters": 3}')
    (tree / "benchmarks/results/other.json").write_text("{}")
    status, said = listed(monkeypatch, capsys)
    assert (status, "letters: says nothing of what made it" in said, "other: no entry" in said) == (1, True, True)


def test_a_benchmark_that_fails_leaves_its_result(tree: Path) -> None:
    file = tree / "benchmarks/results/letters.json"
    file.write_text('{"letters": 3}')
    (tree / "source" / "text.txt").unlink()
    with pytest.raises(SystemExit, match="ended with 1; its result stays as it was"):
        stale.make("letters")
    assert file.read_text() == '{"letters": 3}'


@pytest.mark.parametrize(
    ("printed", "found"),
    [('{"a": 1}', {"a": 1}), ('words\n{"b": 2}\n{\n "a": {\n  "b": 1\n }\n}\n', {"a": {"b": 1}})],
)
def test_the_last_object_is_the_result(printed: str, found: dict[str, object]) -> None:
    assert stale.last_object(printed) == found


def test_every_source_is_there_and_every_known_result_says_what_made_it() -> None:
    for name, figures in stale.BENCHMARKS.items():
        paths = [f"benchmarks/{figures.module or name}.py", *figures.sources]
        assert [path for path in paths if not (ROOT / path).exists()] == [], name
        file = stale.RESULTS / f"{name}.json"
        assert stale.fault_of(name) != "says nothing of what made it", f"python -m benchmarks.stale --stamp {name}"
        if file.is_file():
            assert {"command", "commit", "sources_sha256"} <= json.loads(file.read_text())["made_by"].keys(), name


def test_a_function_that_moves_to_another_file_changes_no_figure(tree: Path) -> None:
    one, two = tree / "source" / "one.py", tree / "source" / "two.py"
    first, second = "def a():\n    return 1\n", "@cached\ndef b():\n    return 2\n"
    one.write_text(f'"""Words."""\n\nimport json\n\n\n{first}\n\n{second}')
    before = stale.digest_of("letters")
    one.write_text(first)
    two.write_text(f"# Other words.\nimport sys\n\n\n{second}")
    assert stale.digest_of("letters") == before
    two.write_text(second.replace("@cached\n", ""))
    assert stale.digest_of("letters") != before
