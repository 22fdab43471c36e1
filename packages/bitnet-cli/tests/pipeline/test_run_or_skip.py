"""On small fake stages: what runs, what is skipped, and why."""

import json
from pathlib import Path
from typing import Any

import pytest

from bitnet_cli import run_folder
from bitnet_cli.manifest.stage_needs import StageFacts
from bitnet_cli.stages.stage import Context, Stage
from stage_bench import COLLECT, REPORT, TRAIN, Bench, Collect, RunSection, Train


def test_runs_all_then_skips_all_and_says_why(bench: Bench) -> None:
    assert bench.run() == 0
    assert bench.ran() == ["collect", "train", "report"]
    assert "collect   done in" in bench.output
    assert "· 1 answer" in bench.output
    assert f"run folder: {bench.folder}" in bench.output  # there is no report.html to name

    environment = (bench.folder / "environment.json").stat().st_mtime_ns
    opened = bench.opened
    assert bench.run() == 0
    assert bench.ran() == []
    for stage in ("collect", "train", "report"):
        line = bench.line(stage)
        assert line.startswith(f"{stage:<9} skipped: done 2")
        assert line.endswith("UTC with the same settings and inputs")
    assert bench.opened == opened, "the teacher is not opened when nothing asks it"
    assert (bench.folder / "environment.json").stat().st_mtime_ns == environment


def test_redoes_what_changed_and_says_what(bench: Bench) -> None:
    bench.run()
    bench.change(train=Train(steps=300))
    assert bench.run() == 0
    assert bench.ran() == ["train", "report"]
    assert bench.line("train") == "train     running: train.steps 200 → 300"
    assert bench.line("report") == "report    running: its input checkpoints/**/* has changed (stage train)"
    assert (bench.folder / "checkpoints" / "steps.txt").read_text() == "300 on k=20"


def test_a_redone_stage_with_the_same_output_redoes_nothing_after_it(bench: Bench) -> None:
    bench.run()
    bench.change(run=RunSection(seed=8))
    bench.run()
    assert bench.ran() == ["collect"]
    assert bench.line("collect") == "collect   running: run.seed 7 → 8"


def test_content_of_a_named_file_counts_not_its_place(bench: Bench, tmp_path: Path) -> None:
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    first.write_text("one")
    second.write_text("one")
    bench.change(collect=Collect(prompts=first))
    bench.run()
    bench.change(collect=Collect(prompts=second))
    bench.run()
    assert bench.ran() == []
    second.write_text("two")
    bench.run()
    assert bench.line("collect") == "collect   running: what collect.prompts names has changed"


def test_a_moved_run_folder_is_still_done(bench: Bench, tmp_path: Path) -> None:
    bench.run()
    bench.root.rename(tmp_path / "elsewhere")
    bench.root = tmp_path / "elsewhere"
    bench.run()
    assert bench.ran() == []


def test_from_redoes_that_stage_and_all_after(bench: Bench) -> None:
    bench.run()
    bench.run(start="train")
    assert bench.ran() == ["train", "report"]
    assert bench.line("train") == "train     running: --from train"
    assert (bench.folder / "checkpoints" / "steps.txt").read_text() == "200 on k=20", "nothing of the old run is left"


def test_fresh_redoes_all_and_keeps_the_journal(bench: Bench) -> None:
    bench.run()
    bench.run(fresh=True)
    assert bench.ran() == ["collect", "train", "report"]
    assert (bench.folder / "raw" / "journal").read_text() == "paid"


def test_fresh_does_not_pay_an_external_teacher_again(bench: Bench) -> None:
    bench.external = True
    bench.run()
    bench.run(fresh=True)
    assert bench.ran() == ["train", "report"]
    assert "kept: done" in bench.line("collect")
    assert "`--from collect` asks the teacher again" in bench.line("collect")
    bench.run(start="collect")
    assert bench.ran() == ["collect", "train", "report"]
    assert (bench.folder / "raw" / "journal").exists()


def test_missing_output_is_made_again(bench: Bench) -> None:
    bench.run()
    (bench.folder / "checkpoints" / "steps.txt").unlink()
    bench.run()
    assert bench.line("train") == "train     running: checkpoints/steps.txt is missing"
    (bench.folder / "report.md").write_text("someone wrote here")
    bench.run()
    assert bench.ran() == ["report"]
    assert "report.md was changed (6 → 18 bytes)" in bench.line("report")


def test_a_damaged_record_counts_as_not_done(bench: Bench) -> None:
    bench.run()
    done = run_folder.done_path(bench.folder, "train")
    for damage in ("{", "[]", '{"format": 1}', done.read_text().replace('"format": 1', '"format": 99')):
        done.write_text(damage)
        assert bench.run() == 0
        assert "train" in bench.ran()


def test_missing_input_names_the_stage_that_makes_it(bench: Bench) -> None:
    assert bench.run(only=("train",)) == 2
    assert "train can't run: it reads raw/shard_*.txt, which stage collect makes  → make it with: " in bench.output
    assert "make it with: bitnet run m.toml --stages collect" in bench.output


def test_lost_input_of_a_stage_left_out_names_it_too(bench: Bench) -> None:
    bench.run()
    (bench.folder / "raw" / "shard_000.txt").unlink()
    assert bench.run(only=("train",)) == 2
    assert "which stage collect makes, and raw/shard_000.txt is missing" in bench.output


def test_files_put_there_by_hand_are_an_input(bench: Bench) -> None:
    folder = bench.folder / "raw"
    folder.mkdir(parents=True)
    (folder / "shard_000.txt").write_text("from another run")
    assert bench.run(only=("train",)) == 0
    bench.run(only=("train",))
    assert bench.ran() == []
    (folder / "shard_000.txt").write_text("from a third")
    bench.run(only=("train",))
    assert bench.line("train") == "train     running: its input raw/shard_*.txt has changed (stage collect)"


def test_unknown_stage_names(bench: Bench) -> None:
    assert bench.run(only=("trian",)) == 2
    assert '--stages: there is no stage "trian"  → did you mean "train"?' in bench.output
    assert bench.run(start="colect") == 2
    assert '--from: "colect" is no stage of this run  → did you mean "collect"?' in bench.output
    assert "Then run" not in bench.output, "the same again would be refused again"
    assert not bench.folder.exists()


def test_a_stage_without_its_section_is_left_out_or_an_error(bench: Bench) -> None:
    bench.change(train=None)
    assert bench.run() == 0
    assert bench.ran() == ["collect", "report"]
    assert bench.run(only=("train",)) == 2
    assert "stage train needs a [train] table in the manifest" in bench.output


def test_skip_external_skips_what_needs_the_teacher_and_what_needs_that(bench: Bench) -> None:
    bench.external = True
    assert bench.run(skip_external=True) == 0
    assert bench.ran() == ["report"]
    assert bench.line("collect") == "collect   skipped: SKIP_EXTERNAL=1, and its teacher is external"
    assert bench.line("train") == (
        "train     skipped: it reads raw/shard_*.txt, which stage collect makes, which SKIP_EXTERNAL=1 skipped"
    )
    assert bench.opened == 0
    assert bench.run() == 0
    assert bench.run(skip_external=True) == 0
    assert "with the same settings" in bench.line("collect")
    bench.change(collect=Collect(top_k=3), train=Train(steps=1))
    assert bench.run(skip_external=True) == 0
    assert bench.ran() == ["train", "report"], "what is there is used"


def test_skip_external_leaves_a_local_teacher_alone(bench: Bench) -> None:
    assert bench.run(skip_external=True) == 0
    assert bench.ran() == ["collect", "train", "report"]


def test_a_stage_that_was_stopped_is_no_input(bench: Bench) -> None:
    def stop_half_way(context: Context) -> dict[str, Any]:
        (context.folder / "raw" / "shard_000.txt").write_text("half")
        raise KeyboardInterrupt

    bench.replace("collect", stop_half_way)
    bench.run()
    assert bench.run(only=("train",)) == 2
    assert "that stage was stopped before it finished" in bench.output


def test_changed_metrics_do_not_redo_a_training(bench: Bench) -> None:
    bench.run()
    (bench.folder / "logs" / "metrics.txt").write_text("somebody looked at it and saved it")
    bench.run()
    assert bench.ran() == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "value"),
    [("finished", 5), ("outputs", {"checkpoints/**/*": {"digest": "x", "files": 3}}), ("inputs", []), ("settings", 1),
     ("seconds", "long"), ("outputs", {"checkpoints/**/*": {"digest": "x", "files": {"a": "b"}}})],
)  # fmt: skip
def test_a_record_of_wrong_types_is_no_record(bench: Bench, field: str, value: Any) -> None:
    bench.run()
    path = run_folder.done_path(bench.folder, "train")
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    assert run_folder.read_done(bench.folder, "train") is None
    assert bench.run() == 0
    assert "can't be read" in bench.line("train")


def test_a_stage_left_out_that_is_out_of_date_is_no_input(bench: Bench) -> None:
    def judge(context: Context) -> dict[str, Any]:
        run_folder.write_text(context.folder / "reports" / "judged.txt", "good")
        return {}

    facts = StageFacts(name="evaluate")
    evaluate = Stage(facts=facts, run=judge, reads=TRAIN.writes[:1], writes=("reports/judged.txt",))
    bench.pipeline = (COLLECT, TRAIN, evaluate, REPORT)
    assert bench.run(only=("collect", "train")) == 0
    bench.change(collect=Collect(top_k=3))
    assert bench.run(only=("collect",)) == 0
    assert bench.run(only=("evaluate",)) == 2
    assert "evaluate can't run: train, which it builds on, was done with other inputs" in bench.output
    assert "  → do it again with: bitnet run m.toml --stages train,evaluate" in bench.output
    assert bench.run(only=("train", "evaluate")) == 0
    bench.change(collect=Collect(top_k=4))
    assert bench.run(only=("collect", "evaluate")) == 2
    assert "--stages collect,train,evaluate" in bench.output
