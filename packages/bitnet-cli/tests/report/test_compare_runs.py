"""Several runs in one page."""

import json
from pathlib import Path
from typing import Any

import attrs
import pytest
from click.testing import CliRunner

from bitnet_cli import run_folder
from bitnet_cli.main import cli
from bitnet_cli.report.blocks import Block, Figure, SideBySide, Table
from bitnet_cli.report.compare_runs import (
    FIGURES,
    KL_SUMS,
    best_of,
    comparison_blocks,
    labels,
    lead,
    paired_interval,
    write_comparison,
)
from bitnet_cli.report.read_run import RunRecord, read_run
from bitnet_cli.run_folder import Done


def make(folder: Path, kl: float, *, steps: int = 20, traces: str = "same", **evaluation: Any) -> Path:
    run_folder.make_folders(folder)
    (folder / "manifest.resolved.toml").write_text(
        f'[run]\nname = "{folder.name}"\n[train]\nsteps = {steps}\nlearning_rate = 0.001\n'
    )
    answers = [{"messages": [{"role": "user", "content": "Why?"}], "text": f"<b>{folder.name}</b>"}]
    run_folder.write_json(
        folder / run_folder.EVALUATION,
        {"heldout_kl": kl, "unigram_kl": 4.0, "memory_bytes": 1000, "heldout": {"scored_positions": 10}}
        | {"generation": {"answers": answers}, "teacher_answers": [answers[0] | {"text": "Because."}]}
        | evaluation,
    )
    rows = [{"step": step, "loss": 5 / step, "seen_tokens": 10 * step} for step in range(1, steps + 1)]
    (folder / run_folder.METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_folder.write_done(
        folder,
        Done(
            stage="evaluate", fingerprint="f", finished="2026-11-23T06:00:00+00:00", seconds=1.0, settings={}, files={},
            formats={}, inputs={run_folder.TRACES: traces}, outputs={}, summary={}, packages={},
        ),
    )  # fmt: skip
    return folder


def read(*folders: Path) -> list[RunRecord]:
    return [attrs.evolve(read_run(folder), name=name) for folder, name in zip(folders, labels(folders), strict=True)]


def table(blocks: list[Block], first: str) -> Table:
    return next(block for block in blocks if isinstance(block, Table) and block.header[0] == first)


def test_the_closest_run_is_named_and_its_figures_marked(tmp_path: Path) -> None:
    runs = read(make(tmp_path / "short", 3.0), make(tmp_path / "long", 2.4, steps=40, memory_bytes=2000))
    assert lead(runs) == "long is closest to the teacher: held-out KL 2.4 nats per token, 0.80 of the 3 of short."
    figures = table(comparison_blocks(runs), "figure")
    assert figures.header == ("figure", "short", "long")
    marked = {(figures.rows[row][0], figures.header[column]) for row, column in figures.marked}
    assert marked == {
        ("held-out KL, nats per token", "long"), ("of the unigram's", "long"), ("memory of the weights", "short"),
    }  # fmt: skip


def test_settings_that_differ_are_told(tmp_path: Path) -> None:
    runs = read(make(tmp_path / "short", 3.0), make(tmp_path / "long", 2.4, steps=40))
    settings = table(comparison_blocks(runs), "setting")
    assert settings.rows == (("train.steps", "20", "40"),), "not the name, not the learning rate"


def test_curves_are_overlaid_and_answers_side_by_side(tmp_path: Path) -> None:
    blocks = comparison_blocks(read(make(tmp_path / "short", 3.0), make(tmp_path / "long", 2.4, steps=40)))
    (figure,) = [block for block in blocks if isinstance(block, Figure)]
    assert [line.label for line in figure.charts[0].lines] == ["short", "long"]  # type: ignore[union-attr]
    (samples,) = [block for block in blocks if isinstance(block, SideBySide)]
    assert samples.header == ("prompt", "short", "long", "teacher")
    assert samples.rows == (("Why?", "<b>short</b>", "<b>long</b>", "Because."),)


@pytest.mark.slow
@pytest.mark.parametrize("other", [{"traces": "other"}, {"heldout": {"scored_positions": 11}}])
def test_different_texts_have_no_best(tmp_path: Path, other: dict[str, Any]) -> None:
    runs = read(make(tmp_path / "a", 3.0), make(tmp_path / "b", 2.4, **other))
    assert lead(runs).startswith("The runs were measured on different held-out text")
    assert table(comparison_blocks(runs), "figure").marked == frozenset()


def test_indices_of_different_qualities_have_no_best(tmp_path: Path) -> None:
    first = make(tmp_path / "a", 3.0, qei=2.0, qei_quality="perplexity")
    for quality, marked in (("perplexity", {1}), ("json_validity.valid", set())):
        runs = read(first, make(tmp_path / "b", 3.0, qei=1.0, qei_quality=quality))
        figures = table(comparison_blocks(runs), "figure")
        (row,) = [place for place, cells in enumerate(figures.rows) if cells[0] == "QEI"]
        assert {column for at, column in figures.marked if at == row} == marked


def test_runs_without_an_evaluation(tmp_path: Path) -> None:
    first, second = make(tmp_path / "a", 3.0), make(tmp_path / "b", 2.4)
    (second / run_folder.EVALUATION).unlink()
    assert lead(read(first, second)) == "1 of 2 runs has a held-out KL."
    (first / run_folder.EVALUATION).unlink()
    assert lead(read(first, second)) == "None of 2 runs have a held-out KL."
    for folder in (first, second):
        (folder / run_folder.METRICS).unlink()
    assert len(comparison_blocks(read(first, second))) > 4


def documents(*nats: float) -> dict[str, list[float]]:
    return {"kl": list(nats), "kd_positions": [10.0] * len(nats)}


def test_runs_that_their_documents_cannot_tell_apart_tie(tmp_path: Path) -> None:
    """Documents differ far more than the runs: only in pairs is `best` better than `worse`, but not than `tied`."""
    of = {
        "best": documents(10, 20, 30, 40, 50, 60), "worse": documents(12, 22, 32, 42, 52, 62),
        "tied": documents(14, 17, 33, 38, 54, 57),
    }  # fmt: skip
    folders = [
        make(tmp_path / name, sum(each["kl"]) / 60, documents=each, heldout={"scored_positions": 60})
        for name, each in of.items()
    ]
    runs = read(*folders)
    blocks = comparison_blocks(runs)
    assert lead(runs).startswith("best and tied tie: held-out KL 3.5 and 3.55 nats per token;")
    assert lead(runs[:2]).startswith("best is closest to the teacher")
    low, high = paired_interval(runs[1], runs[0], KL_SUMS)  # type: ignore[misc]
    assert (low, high) == pytest.approx((0.2, 0.2))
    assert [(row[0], row[2]) for row in table(blocks, "run").rows] == [
        ("worse", "farther from the teacher"), ("tied", "tie"),
    ]  # fmt: skip
    figures = table(blocks, "figure")
    assert {column for row, column in figures.marked if row == 0} == {1, 3}, "the best, and its tie"
    other = read(make(tmp_path / "other", 1.0, documents=documents(1, 2, 3)))[0]
    assert paired_interval(other, runs[0], KL_SUMS) is None, "other documents"


def test_the_page_leads_to_each_runs_report(tmp_path: Path) -> None:
    folders = [make(tmp_path / "runs" / "a b", 3.0), make(tmp_path / "runs" / "c", 2.4)]
    (folders[0] / "report.html").touch()
    write_comparison(folders, tmp_path / "pages" / "all.html")
    html = (tmp_path / "pages" / "all.html").read_text()
    assert '<a href="../runs/a%20b/report.html">a b</a>, c.' in html


def test_equal_values_have_no_best() -> None:
    assert best_of(FIGURES[0], [2.0, 2.0, None], apart=False) == []
    assert best_of(FIGURES[0], [2.0, None, 1.0], apart=False) == [2]
    assert best_of(FIGURES[0], [float("nan"), 2.0, 1.0], apart=False) == [2]


def test_names_are_told_apart(tmp_path: Path) -> None:
    assert labels([tmp_path / "a" / "run", tmp_path / "b" / "run"]) == ["a/run", "b/run"]
    assert labels([tmp_path / "x", tmp_path / "y"]) == ["x", "y"]


def test_the_command_writes_one_page(tmp_path: Path) -> None:
    first, second = make(tmp_path / "short", 3.0), make(tmp_path / "long", 2.4)
    page = tmp_path / "all.html"
    result = CliRunner().invoke(cli, ["report", str(first), str(second), "--out", str(page)])
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == [lead(read(first, second)), f"report: {page}"]
    html = page.read_text()
    assert "&lt;b&gt;short&lt;/b&gt;" in html
    assert '<td class="best" data-label="long">2.4</td>' in html
    assert not (first / "report.html").exists()


def test_the_command_names_what_is_no_run_folder(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["report", str(make(tmp_path / "a", 3.0)), str(tmp_path / "none")])
    assert result.exit_code == 2
    assert f"{tmp_path / 'none'} is no run folder" in result.output
