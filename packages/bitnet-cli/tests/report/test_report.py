"""Reports from synthetic run folders, whole and partial."""

import base64
import hashlib
import json
import random
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import attrs
import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from bitnet_cli import run_folder
from bitnet_cli.main import cli
from bitnet_cli.report.blocks import Block, Bullets, Code, Facts, Figure, Heading, Link, Table, Text, plain
from bitnet_cli.report.html import to_html
from bitnet_cli.report.markdown import to_markdown
from bitnet_cli.report.number_format import bytes_text, count, duration, number, scalar_rows
from bitnet_cli.report.read_run import read_run
from bitnet_cli.report.sections.benchmarks import compared_scores
from bitnet_cli.report.sections.provenance import bibtex
from bitnet_cli.report.sections.verdict import verdict
from bitnet_cli.report.write_report import report_blocks, write_report
from bitnet_cli.run_folder import Artifact, Done

CALIBRATION = {"ece": 0.125, "bin_count": 2, "bins": [
    {"from": 0.0, "positions": 60, "confidence": 0.3, "accuracy": 0.25},
    {"from": 0.5, "positions": 40, "confidence": 0.7, "accuracy": 0.9},
]}  # fmt: skip
EVALUATION = {
    "heldout_kl": 2.4, "untrained_kl": 6.1, "unigram_kl": 3.0, "bigram_kl": 2.8, "top1_agreement": 0.31,
    "perplexity": 80.0, "teacher_perplexity": 20.0, "tokens_per_second": 50.0, "teacher_tokens_per_second": 25.0,
    "memory_bytes": 60_000_000, "teacher_memory_bytes": 540_000_000, "qei": 2.25, "qei_speed": 4.5,
    "activation_bits": 4, "dense_memory_bytes": 184_000_000, "runtime": "torch 2.15 on cpu, 2 threads",
    "heldout": {"documents": 12, "kd_positions": 6400, "calibration": CALIBRATION, "teacher_calibration": CALIBRATION},
    "heldout_at_8_bits": {"kl": 2.3},
    "intervals_95": {"heldout_kl": [2.3, 2.5]},
    "qei_inputs": {"student_memory_bytes": {"value": 60_000_000, "source": "the packed file's size"}},
    "generation": {"json_validity": 0.5, "answers": [
        {"id": "a", "messages": [{"role": "user", "content": "Why | is <it>?"}], "text": "Because\n# of *it*"},
    ]},
    "teacher_answers": [
        {"id": "a", "messages": [{"role": "user", "content": "Why | is <it>?"}], "text": "<script>alert(1)</script>"},
    ],
}  # fmt: skip


def metrics(steps: int = 40, flip: int | None = 30) -> Iterator[dict[str, Any]]:
    for step in range(1, steps + 1):
        row = {
            "step": step, "seen_tokens": 100 * step, "loss": 5 / step + 2, "kd": 5 / step + 1, "ce": 3.0, "format": 0.0,
            "lr": 1e-3, "grad_norm": 1.0, "bits": 4 if flip and step >= flip else 8, "tokens_per_second": 900.0,
        }  # fmt: skip
        yield row | ({"validation_kl": 3 - step / 100} if step % 10 == 0 else {})


def health(step: int, dead: float = 0.0) -> dict[str, Any]:
    layer = {"minus": 0.25, "zero": 0.5, "plus": 0.25, "dead_rows": dead, "flipped": 0.01}
    names = [f"model.layers.{block}.{part}_proj" for block in (0, 1) for part in ("self_attn.q", "mlp.down")]
    return {"step": step, "layers": dict.fromkeys(names, layer)}


def done(stage: str, summary: dict[str, Any]) -> Done:
    return Done(
        stage=stage, fingerprint="f", finished="2026-11-22T23:00:00+00:00", seconds=1.5, settings={}, files={},
        formats={}, inputs={}, outputs={"x": Artifact(digest="d", files={})}, summary=summary, packages={},
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder with everything in it."""
    folder = tmp_path / "quickstart"
    run_folder.make_folders(folder)
    (folder / "manifest.resolved.toml").write_text('[run]\nname = "quickstart"\n')
    run_folder.write_json(folder / "reports" / "mini_evaluation_report.json", EVALUATION)
    run_folder.write_json(
        folder / "reports" / "teacher_baseline.json",
        {"teacher": {"model": "smol", "dtype": "bfloat16", "device": "cpu"}, "answers": [], "tokens_per_second": 25.0},
    )
    run_folder.write_json(
        folder / "environment.json",
        {
            "git": {"commit": "abc123", "dirty": True},
            "python": "3.11.7",
            "cpu": "a CPU",
            "cpu_count": 2,
            "packages": {},
        },
    )
    (folder / "logs" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics()))
    for step in (20, 40):
        run_folder.write_json(folder / "checkpoints" / f"step_{step}_health.json", health(step))
    for record in (
        done("collect", {"headline": "120 answers", "completions": 120, "warnings": ["three answers were cut"]}),
        done(
            "project",
            {
                "positions": 60123,
                "mass": {"lost_to_other": 0.01},
                "splits": {"train": {"rows": 9}, "heldout": {"rows": 1000}},
                "shard_bytes": 2_000_000,
                "mean_topk_mass": 0.9,
                "mean_other_mass": 0.1,
                "kd_coverage": 0.95,
                "other_mass_histogram": {"edges": [0.0, 0.1, 1.0], "counts": [3, 1]},
            },
        ),
    ):
        run_folder.write_done(folder, record)
    return folder


def test_the_teachers_quantised_files_stand_beside_the_student(folder: Path) -> None:
    rows = [
        {"model": "teacher, Q8", "bytes": 145e6, "perplexity": 3.5, "kl": 0.01, "qei_of_student": 0.55},
        {"model": "teacher, IQ2", "bytes": 80e6, "perplexity": 60.0, "kl": 2.0, "qei_of_student": 5.2},
        {"model": "damaged", "bytes": "many", "perplexity": 1.0},
    ]
    student = {"model": "our student", "bytes": 55e6, "perplexity": 16.6, "kl": 1.2}
    report = {"split": "test", "llama_cpp": "v0.5.0", "teacher": rows, "student": student}
    assert "quantised files" not in to_markdown(report_blocks(read_run(folder)))
    run_folder.write_json(folder / "reports" / "teacher_quantised.json", report)
    said = to_markdown(report_blocks(read_run(folder)))
    assert "perplexity on the test documents" in said
    lines = [line.strip("| ").split(" | ") for line in said.splitlines() if line.startswith("| ")]
    first = ("teacher, Q8", "teacher, IQ2", "our student")
    found = [[cell.strip() for cell in line] for line in lines if line[0].strip() in first]
    assert found == [
        ["teacher, Q8", "145.0 MB", "3.5", "0.01", "0.55"],
        ["teacher, IQ2", "80.0 MB", "60", "2", "5.2"],
        ["our student", "55.0 MB", "16.6", "1.2", "–"],
    ]
    assert "damaged" not in said


def test_verdict_comes_first(folder: Path) -> None:
    said = write_report(folder)
    assert said == (
        "The student is closer to the teacher than the best unigram: held-out KL 2.4 nats per token, "
        "0.80 of the unigram's 3 and 0.86 of the smoothed bigram's 2.8."
    )
    assert (folder / "report.md").read_text().splitlines()[:3] == ["# BitNet KDE: quickstart", "", f"**{said}**"]


def test_the_teachers_speed_says_whose_clock_it_is(folder: Path) -> None:
    path = folder / "reports" / "teacher_baseline.json"
    timed = {"clock_note": "the network included", "tokens_per_second_interval_95": [20.0, 30.0]}
    run_folder.write_json(path, run_folder.read_json(path) | timed)
    text = to_markdown(report_blocks(read_run(folder)))
    assert "bfloat16 on cpu; timed by: the network included; 95 %: 20 to 30 |" in text


def test_the_tables_hold_the_figures_and_their_sources(folder: Path) -> None:
    text = to_markdown(report_blocks(read_run(folder)))
    for line in (
        "| student (A4) | 2.4 (2.3 to 2.5) | 0.800 |  |",
        "| the same student at A8, as it is exported | 2.3 | 0.767 |  |",
        "| bigram, smoothed | 2.8 | 0.933 | closer |",
        "| unigram | 3 | 1.000 | closer |",
        "| untrained student | 6.1 | 2.033 | closer |",
        "| quality: 1 / perplexity | 0.0125 | 0.05 | the same held-out tokens |",
        "| memory of the weights | 60.0 MB | 540.0 MB | student: the packed file's size; "
        "teacher: baseline: smol, bfloat16 on cpu |",
        "| positions | 60,123 |",
        "| mass: lost to other | 0.01 |",
        "| shard | 2.0 MB |",
        "| figure | train | heldout |\n| --- | ---: | ---: |\n| rows | 9 | 1,000 |",
        "| smaller by | 9× | 60.0 MB of 540.0 MB |",
        "| speed | 2× | 50 against 25 tok/s |",
        "| QEI | 2.25 | quality per byte; the teacher has 1 |",
        "There are [2 warnings](#warnings).",
        "| top-K mass | 90 % | of the teacher's probability, K = ? |",
        "| coverage | 95 % | of the response's positions have a KD target |",
        "Of the checkpoint at step 40: ",
        "No row is dead.",
        "| 20 | 25.00 % | 50.00 % | 25.00 % | 0.00 % | 1.00 % |",
        "Expected calibration error: student 0.125, teacher 0.125.",
        "- collect: three answers were cut",
        "- Tracked files differed from the commit when this run was made.",
    ):
        assert line in text
    assert "activations went from 8 to 4 bits by step 30" in text
    assert "| QEI | 2.25 |" in text


def test_what_models_say_is_never_markup(folder: Path) -> None:
    blocks = blocks_of(folder)
    text, html = to_markdown(blocks), to_html(blocks)
    assert r"| Why \| is \<it\>? | Because \# of \*it\* | \<script\>alert(1)\</script\> |" in text
    assert html.count("<script") == 1, "the page's own"
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html


def test_only_the_pages_own_script_may_run(folder: Path) -> None:
    html = to_html(blocks_of(folder))
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html
    assert "default-src 'none'" in html


class Links(HTMLParser):
    """Collects what a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "data")]


def test_html_stands_alone(folder: Path) -> None:
    (folder / "exports" / "student &.gguf").touch()
    write_report(folder)
    html = (folder / "report.html").read_text()
    page = Links()
    page.feed(html)
    files = {link for link in page.links if not link.startswith("#")} - {"data:,"}
    assert {"logs/metrics.jsonl", "reports/mini_evaluation_report.json", "exports/student%20%26.gguf"} <= files
    assert all((folder / unquote(file)).is_file() for file in files)
    ids = set(re.findall(r'id="([^"]+)"', html))
    assert {link[1:] for link in page.links if link.startswith("#")} <= ids
    assert "color-scheme: light dark" in html
    assert set(re.findall(r"https?://[^\s\"']*", html)) == {"http://www.w3.org/2000/svg"}, "a name, not an address"
    assert "url(" not in html
    assert "@import" not in html


def test_pictures_are_where_the_markdown_says(folder: Path) -> None:
    write_report(folder)
    pictures = re.findall(r"!\[[^]]*\]\(([^)]*)\)", (folder / "report.md").read_text())
    names = ("kl", "loss", "validation", "training", "other_mass", "codes", "calibration")
    assert pictures == [f"reports/figures/{name}.svg" for name in names]
    for picture in pictures:
        root = ET.fromstring((folder / picture).read_text())
        assert root.tag == "{http://www.w3.org/2000/svg}svg"


@pytest.mark.slow
def test_the_same_folder_gives_the_same_report(folder: Path) -> None:
    write_report(folder)
    first = [(folder / name).read_bytes() for name in ("report.md", "report.html")]
    run_folder.write_done(folder, done("report", {}))
    write_report(folder)
    assert [(folder / name).read_bytes() for name in ("report.md", "report.html")] == first


def test_an_empty_folder_says_what_is_missing(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    run_folder.make_folders(folder)
    assert write_report(folder) == "No verdict: not there yet: evaluate has not run."
    text = (folder / "report.md").read_text()
    for missing in (
        "Held-out figures: not there yet: evaluate has not run.",
        "QEI: not there yet: evaluate has not run.",
        "Training curves: not there yet: train has not run.",
        "Not there yet: collect has not run.",
        "Not there yet: project has not run.",
        "manifest.resolved.toml is missing.",
    ):
        assert missing in text
    assert "![" not in text


PIECES = (
    "checkpoints/step_40_health.json",
    "reports/mini_evaluation_report.json",
    "reports/teacher_baseline.json",
    "environment.json",
    "logs/metrics.jsonl",
    "stages/collect/done.json",
    "manifest.resolved.toml",
)


def blocks_of(folder: Path) -> list[Block]:
    """The report's content without the pictures, which take a second."""
    blocks = report_blocks(read_run(folder))
    assert to_markdown(blocks).startswith("# BitNet KDE: quickstart")
    assert to_html(blocks).startswith("<!doctype html>")
    return blocks


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", "null"])
def test_any_piece_may_be_missing_or_damaged(folder: Path, piece: str, content: str | None) -> None:
    if content is None:
        (folder / piece).unlink()
    else:
        (folder / piece).write_text(content)
    assert len(blocks_of(folder)) > 15


@pytest.mark.parametrize("key", sorted(EVALUATION))
def test_any_figure_may_be_absent(folder: Path, key: str) -> None:
    for report in ({name: value for name, value in EVALUATION.items() if name != key}, EVALUATION | {key: None}):
        run_folder.write_json(folder / "reports" / "mini_evaluation_report.json", report)
        assert len(blocks_of(folder)) > 15


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_figure_that_is_no_number_is_told_and_not_drawn(folder: Path, value: float) -> None:
    for key in ("heldout_kl", "untrained_kl", "unigram_kl"):
        run_folder.write_json(folder / "reports" / "mini_evaluation_report.json", EVALUATION | {key: value})
        assert str(value) in to_markdown(blocks_of(folder))
    bins = [CALIBRATION["bins"][0] | {"confidence": value}]  # type: ignore[index]
    odd = EVALUATION | {"heldout": {"calibration": CALIBRATION | {"bins": bins}}}
    run_folder.write_json(folder / "reports" / "mini_evaluation_report.json", odd)
    assert "Expected calibration" not in to_markdown(blocks_of(folder))


def test_the_size_says_what_it_is_of(folder: Path) -> None:
    file = EVALUATION | {"teacher_memory_bytes": None, "memory_source": "student-F16.gguf, the file that was run"}
    run_folder.write_json(folder / "reports" / "mini_evaluation_report.json", file)
    assert "| weights | 60.0 MB | student-F16.gguf, the file that was run |" in to_markdown(blocks_of(folder))


def test_a_torn_last_row_is_left_out(folder: Path) -> None:
    with (folder / "logs" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "lo')
    assert "| figure | step 1 | step 40 |" in to_markdown(blocks_of(folder))


def test_a_run_at_work_says_how_far_it_is(folder: Path) -> None:
    run_folder.write_json(run_folder.started_path(folder, "train"), {"since": "2026-11-23T06:00:00+00:00"})
    assert "Not finished: train, begun 2026-11-23 06:00:00 UTC, is at work or was stopped. It has got to step 40." in (
        to_markdown(blocks_of(folder))
    )


def test_dead_rows_are_named(folder: Path) -> None:
    run_folder.write_json(folder / "checkpoints" / "step_60_health.json", health(60, dead=0.5))
    text = to_markdown(blocks_of(folder))
    assert r"At worst 50 % of a layer's rows are dead, in model.layers.0.self\_attn.q\_proj." in text
    (figure,) = [block for block in blocks_of(folder) if isinstance(block, Figure) and block.name == "codes"]
    assert [chart.title for chart in figure.charts][-1] == "Rows without a live code, %"
    assert figure.charts[0].rows == ("0", "1")
    assert figure.charts[0].columns == ("q", "down")


@pytest.mark.parametrize(
    "layers",
    [None, [], {}, {"x": 3}, {"x": {"minus": "a"}}, {"odd name": {"minus": 0, "zero": 1, "plus": 0, "flipped": 0}}],
)
def test_health_of_any_shape(folder: Path, layers: Any) -> None:
    run_folder.write_json(folder / "checkpoints" / "step_99_health.json", {"step": 99, "layers": layers})
    blocks_of(folder)


@pytest.mark.parametrize("bins", [None, [], {}, [{"from": 0}], [3]])
def test_calibration_of_any_shape(folder: Path, bins: Any) -> None:
    broken = EVALUATION | {"heldout": {"calibration": {"ece": 0.1, "bin_count": 15, "bins": bins}}}
    run_folder.write_json(folder / "reports" / "mini_evaluation_report.json", broken)
    assert "Expected calibration" not in to_markdown(blocks_of(folder))


def test_bad_news_is_said(folder: Path) -> None:
    worse = EVALUATION | {"heldout_kl": 7.0, "teacher_memory_bytes": None, "qei": None}
    run_folder.write_json(folder / "reports" / "mini_evaluation_report.json", worse)
    (folder / "logs" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics(flip=None)))
    assert verdict(read_run(folder)).startswith("The student is no closer to the teacher than the best unigram")
    text = to_markdown(blocks_of(folder))
    assert "- The student is no better than the untrained student: 7 against 6.1 nats." in text
    assert "- Activations never flipped to 4 bits" in text
    assert "- The teacher's memory is unknown, so QEI is absent." in text


@pytest.mark.parametrize(
    ("paired", "own", "standing"),
    [
        ([-0.9, -0.1], [1.0, 9.0], "closer (-0.9 to -0.1)"),
        ([-0.9, 0.1], [2.3, 2.5], "tie (-0.9 to 0.1)"),
        (None, [2.3, 2.5], "closer"),
        (None, [1.9, 3.1], "tie"),
        (None, None, "closer"),
    ],
)
def test_an_interval_that_holds_the_baseline_is_a_tie(folder: Path, paired: Any, own: Any, standing: str) -> None:
    """The paired interval decides; where an older report has none, the student's own."""
    report = EVALUATION | {"differences_95": {"unigram_kl": paired}, "intervals_95": {"heldout_kl": own}}
    run_folder.write_json(folder / "reports" / "mini_evaluation_report.json", report)
    text = to_markdown(blocks_of(folder))
    assert f"| unigram | 3 | 1.000 | {standing} |" in text
    tie = standing.startswith("tie")
    assert verdict(read_run(folder)).startswith("The student ties with" if tie else "The student is closer") is True
    assert ("- The student ties with the unigram: 2.4 against 3 nats." in text) == tie


def test_scores_that_the_items_cannot_tell_apart_are_ties(folder: Path) -> None:
    def score(difference: Any, **more: Any) -> dict[str, Any]:
        sides = {
            "student": {"value": 0.5, "interval_95": [0.2, 0.8], "items": 8},
            "teacher": {"value": 0.6, "items": 8},
        }
        return {"unit": "share", "difference_95": difference} | sides | more

    scores = {"a": score([-0.3, 0.1]), "b": score([-0.3, -0.1], chance=0.25), "c": score(None, chance=0.1)}
    report = EVALUATION | {"benchmarks": {"mine": {"scores": scores}}}
    run_folder.write_json(folder / "reports" / "mini_evaluation_report.json", report)
    text = to_markdown(blocks_of(folder))
    assert "| mine | a | 0.5 (0.2 to 0.8) | 0.6 | tie (-0.3 to 0.1) | 8 | share |" in text
    assert "| -0.3 to -0.1 | 8 | share; guessing scores 0.25, a tie with it |" in text
    assert "| mine | c | 0.5 (0.2 to 0.8) | 0.6 | – | 8 | share; guessing scores 0.1 |" in text
    found = {row["score"]: row["tie"] for row in compared_scores(read_run(folder).evaluation)}
    assert found == {"mine.a": True, "mine.b": False, "mine.c": False}


def test_what_the_manifest_asked_for_is_no_warning(folder: Path) -> None:
    (folder / "logs" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics(flip=None)))
    (folder / "reports" / "teacher_baseline.json").unlink()
    asked = '[run]\nstages = ["train"]\n[train]\nflip_fraction = 1.0\n'
    for manifest, warned in ((asked, False), ("[train]\nflip_fraction = 0.5\n", True)):
        (folder / "manifest.resolved.toml").write_text(manifest)
        text = to_markdown(blocks_of(folder))
        before, _, after = text.partition("### Notes")
        assert ("Activations never flipped" in before) == ("There is no teacher baseline" in before) == warned
        assert ("- Activations stayed at 8 bits" in after) == ("- run.stages has no baseline" in after) == (not warned)


def test_a_hosted_teachers_unknown_memory_is_a_note(folder: Path) -> None:
    report = EVALUATION | {"teacher_memory_bytes": None, "qei": None}
    run_folder.write_json(folder / "reports" / "mini_evaluation_report.json", report)
    for kind, note in (("openai", True), ("local", False)):
        (folder / "manifest.resolved.toml").write_text(f'[teacher]\nkind = "{kind}"\nmodel = "m"\n')
        text = to_markdown(blocks_of(folder))
        assert ("The teacher is hosted" in text, "The teacher's memory is unknown" in text) == (note, not note)


def test_the_top_says_what_of_what_on_what_and_when(folder: Path) -> None:
    commit = "0123456789" * 4
    (folder / "manifest.resolved.toml").write_text(
        f'[teacher]\nkind = "local"\nmodel = "ORG/big_one@{commit}"\n[student]\ninit_from = "teacher"\n'
    )
    step = folder / "checkpoints" / "step_40"
    step.mkdir()
    run_folder.write_json(step / "config.json", {"num_hidden_layers": 2, "hidden_size": 64, "quantise_weights": True})
    save_file({"a": np.zeros((1000, 1000), np.float32), "b": np.zeros(500_000, np.float16)}, step / "model.safetensors")
    run_folder.write_json(folder / "reports" / "mini_evaluation_report.json", EVALUATION | {"checkpoint": "step_40"})
    (folder / "exports" / "student-q2_0.gguf").touch()
    run_folder.write_done(
        folder, done("export", {"exports": {"student-q2_0.gguf": {"bytes": 9e6}, "student-f16.gguf": {"bytes": 2e7}}})
    )
    trained = attrs.evolve(done("train", {}), seconds=3725.0)
    run_folder.write_done(folder, trained)
    (facts,) = [block for block in report_blocks(read_run(folder)) if isinstance(block, Facts)]
    assert {name: plain(words) for name, words in facts.rows} == {
        "Teacher": "ORG/big_one@0123456: bfloat16 on cpu",
        "Student": "1.5 M parameters, 2 layers of width 64, ternary weights, A4 activations, started from the teacher",
        "Size": "60.0 MB of weights, the teacher's 540.0 MB; student-q2_0.gguf 9.0 MB",
        "Tokens": "4,000 seen in 40 steps",
        "Hardware": "a CPU, 2 cores",
        "Time": "1 h 2 min, of which training 1 h 2 min",
        "Date": "2026-11-22 23:00 UTC",
    }
    text = to_markdown([facts])
    assert f"[ORG/big\\_one@0123456](https://huggingface.co/ORG/big_one/tree/{commit})" in text
    assert "[student-q2\\_0.gguf](exports/student-q2_0.gguf)" in text


def test_a_run_can_be_cited(folder: Path) -> None:
    assert "Cite this run" not in to_markdown(blocks_of(folder)), "not trained yet"
    record = done("train", {})
    checkpoint = Artifact(digest="c0ffee" * 4, files={})
    run_folder.write_done(
        folder,
        attrs.evolve(record, inputs={run_folder.TRACES: "7ace" * 8}, outputs={run_folder.CHECKPOINTS: checkpoint}),
    )
    (folder / "manifest.resolved.toml").write_text('[teacher]\nmodel = "some_model"\n')
    text = bibtex(read_run(folder))
    assert r"title   = {quickstart: a ternary student of some\_model}" in text
    assert "commit abc123, traces 7ace7ace7ace7ace, checkpoint c0ffeec0ffeec0ff" in text
    assert "year    = 2026,\n  month   = nov\n}" in text
    assert text.count("@") == 2
    assert text.count("{") == text.count("}")
    assert text.strip() in to_markdown(blocks_of(folder))


def test_blocks_in_both_languages() -> None:
    blocks = [Heading("A_b"), Text("x < y"), Bullets(("1", "2")), Table(("a", "b"), (("1", "2"),)), Code("```\nx", "s")]
    markdown = to_markdown(blocks)
    assert markdown.startswith("## A\\_b\n\nx \\< y\n\n- 1\n- 2\n\n| a | b |\n| --- | ---: |\n| 1 | 2 |\n")
    assert "````\n```\nx\n````" in markdown, "a fence longer than any in the text"
    html = to_html([Heading("t&t", level=1), *blocks])
    assert "<title>t&amp;t</title>" in html
    assert "<p>x &lt; y</p>" in html
    linked = [Text(("see ", Link("a_b", "x%20y.json"), ".")), Facts((("of", Link("<c>", "#d")),))]
    assert to_markdown(linked) == "see [a\\_b](x%20y.json).\n\n|  |  |\n| --- | --- |\n| of | [\\<c\\>](#d) |\n"
    assert '<p>see <a href="x%20y.json">a_b</a>.</p>' in to_html(linked)
    assert '<dd><a href="#d">&lt;c&gt;</a></dd>' in to_html(linked)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (3, "3"), (12345, "12,345"), (0.123456, "0.1235"), (1234.5, "1,234"), (1e-5, "1e-05"), ("x", "x")],
)
def test_numbers(value: Any, text: str) -> None:
    assert number(value) == text


def test_not_a_number_does_not_break_a_report() -> None:
    assert number(float("nan")) == "nan"
    assert number(float("inf")) == "inf"


def test_words() -> None:
    assert [bytes_text(value) for value in (None, 1_500_000, 2_340_000_000)] == ["–", "1.5 MB", "2.34 GB"]
    assert [count(value) for value in (None, 1500, 134_515_008, 6.738e9)] == ["–", "1,500", "134.5 M", "6.738 B"]
    assert [duration(value) for value in (None, 3.14159, 59.7, 207, 3725, 90_000)] == [
        "–", "3.14 s", "1 min 0 s", "3 min 27 s", "1 h 2 min", "1 d 1 h",
    ]  # fmt: skip
    assert scalar_rows({"headline": "x", "a_b": 1, "rows": [1], "n": {"c": True}}) == (("a b", "1"), ("n: c", "True"))


def test_an_evaluation_of_an_older_training_gives_no_verdict(folder: Path) -> None:
    checkpoints = "checkpoints/**/*"
    trained = done("train", {})
    for digest in ("old", "new"):
        outputs = {checkpoints: Artifact(digest=digest, files={})}
        run_folder.write_done(folder, attrs.evolve(trained, outputs=outputs))
        run_folder.write_done(folder, attrs.evolve(done("evaluate", {}), inputs={checkpoints: "old"}))
        assert verdict(read_run(folder)).startswith("The student is closer") is (digest == "old")
    assert verdict(read_run(folder)) == (
        "No verdict: the evaluation is of an older training; run --stages evaluate,report."
    )
    assert "2.4 (2.3" not in to_markdown(report_blocks(read_run(folder)))
    run_folder.done_path(folder, "train").unlink()
    run_folder.write_json(run_folder.started_path(folder, "train"), {})
    assert read_run(folder).stale


def test_settings_that_a_stage_was_done_with_are_told(folder: Path) -> None:
    (folder / "manifest.resolved.toml").write_text("[train]\nsteps = 400\n[project]\nholdout_fraction = 0.1\n")
    settings = {"train.steps": 200, "project.holdout_fraction": 0.1, "loss.tau": None}
    run_folder.write_done(folder, attrs.evolve(done("train", {}), settings=settings))
    text = to_markdown(report_blocks(read_run(folder)))
    assert "| train.steps | train | 200 | 400 |" in text
    assert "holdout_fraction |" not in text
    assert "loss.tau" not in text


def test_damaged_files_do_not_stop_a_report(folder: Path) -> None:
    (folder / "logs" / "metrics.jsonl").write_bytes(b'\xff\xfe\n{"step": "one"}\n{"step": 1, "loss": 2.0}\n')
    (folder / "manifest.resolved.toml").write_bytes(b'[run]\nname = "\xff"\n')
    broken = EVALUATION | {"heldout_kl": "low", "intervals_95": 3, "perplexity": [], "heldout": "all"}
    run_folder.write_json(folder / "reports" / "mini_evaluation_report.json", broken)
    assert write_report(folder).startswith("No verdict")


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_a_user_error(folder: Path) -> None:
    (folder / "report.md").mkdir()
    result = CliRunner().invoke(cli, ["report", str(folder)])
    assert result.exit_code == 2
    assert "the report can't be written" in result.output


ODD: tuple[Any, ...] = (
    None,
    "x",
    "",
    [],
    {},
    [None],
    {"x": []},
    -1,
    0,
    1e308,
    float("nan"),
    True,
    "\u202e" * 3,
    10**30,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a JSON value, itself first."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, each in inner:
        yield from places(each, (*path, key))


def put(value: Any, path: tuple[Any, ...], odd: Any) -> Any:
    if not path:
        return odd
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = put(value[path[0]], path[1:], odd)
    return copy


@pytest.mark.slow
def test_wrong_types_in_any_file_leave_a_section_out_and_never_the_report(folder: Path) -> None:
    """Each value of each file, replaced by each odd one in turn: some of a thousand reports."""
    chance, tried = random.Random(18), 0
    files = sorted(file for file in folder.rglob("*.json*") if file.is_file())
    for file in files:
        whole = file.read_text()
        lines = whole.splitlines() if file.suffix == ".jsonl" else [whole]
        value = json.loads(lines[-1])
        every = [(path, odd) for path in places(value) for odd in ODD]
        for path, odd in chance.sample(every, min(60, len(every))):
            file.write_text("\n".join([*lines[:-1], json.dumps(put(value, path, odd))]))
            blocks = report_blocks(read_run(folder))
            assert to_html(blocks), (file.name, path, odd)
            assert to_markdown(blocks), (file.name, path, odd)
            tried += 1
        file.write_text(whole)
    assert tried > 300
