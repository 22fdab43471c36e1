"""The whole job on the real teacher, tiny: manifests/ci.toml from an empty folder to the report, and again."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.real_tokenizers import tokenizer_folder
from bitnet_cli import RunFailedError, run
from bitnet_cli.main import cli
from bitnet_core.hardware import best_device
from bitnet_core.runtime.llamacpp.server import llama_cpp
from bitnet_providers.raw.write_shard import RAW_SCHEMA
from tiny_run import tiny_settings

QUICKSTART = Path(__file__).parents[1] / "manifests/quickstart.toml"
STAGES = ["storage", "baseline", "collect", "project", "train", "evaluate", "export", "report"]


@pytest.fixture(scope="module")
def folder(bitnet: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drive")
    result = bitnet("run", "manifests/ci.toml", DRIVE_ROOT=str(root))
    assert result.returncode == 0, result.stdout + result.stderr
    return root / "ci"


def again(bitnet: Any, folder: Path, *arguments: str) -> str:
    result = bitnet("run", "manifests/ci.toml", *arguments, DRIVE_ROOT=str(folder.parent))
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture
def tiny_copy(tiny_place: Path, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A run with a tiny teacher, copied to another place; and its settings."""
    shutil.copytree(tiny_place / "runs/quickstart", tmp_path / "runs/quickstart")
    return tmp_path / "runs/quickstart", tiny_settings(tmp_path, tiny_place / "teacher")


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "reports/mini_evaluation_report.json").read_text())


@pytest.mark.slow
def test_every_stage_leaves_its_outputs(folder: Path) -> None:
    assert sorted(path.parent.name for path in folder.glob("stages/*/done.json")) == sorted(STAGES)
    for name in (
        "manifest.resolved.toml", "environment.json", "reports/teacher_baseline.json", "logs/metrics.jsonl",
        "checkpoints/step_4_health.json", "report.md", "report.html",
    ):  # fmt: skip
        assert (folder / name).stat().st_size > 0


@pytest.mark.slow
def test_report_figures(folder: Path) -> None:
    figures = report(folder)
    for name in (
        "heldout_kl", "untrained_kl", "unigram_kl", "bigram_kl", "top1_agreement", "perplexity", "teacher_perplexity",
        "tokens_per_second", "teacher_tokens_per_second", "memory_bytes", "teacher_memory_bytes", "qei", "qei_speed",
    ):  # fmt: skip
        assert figures[name] > 0 or name == "top1_agreement", name
    assert figures["heldout_kl"] < figures["untrained_kl"]
    assert figures["activation_bits"] == 4
    assert figures["memory_bytes"] < figures["teacher_memory_bytes"]


@pytest.mark.slow
def test_student_and_teacher_are_scored_by_the_benchmarks(folder: Path) -> None:
    figures = report(folder)
    assert set(figures["benchmarks"]) == {"heldout", "agreement", "json_validity"}
    for name, entry in figures["benchmarks"].items():
        assert entry["absent"] == {}
        for score in entry["scores"].values():
            for role in ("student", "teacher"):
                low, high = score[role]["interval_95"]
                assert low <= score[role]["value"] <= high
                assert score[role]["items"] == (2 if name == "json_validity" else figures["heldout"]["documents"])
    assert figures["benchmarks"]["heldout"]["scores"]["kl"]["student"]["value"] == figures["heldout_kl"]
    answers = figures["benchmarks"]["json_validity"]["details"]["teacher"]["answers"]
    assert [answer["id"] for answer in answers] == ["json-001", "json-002"]
    assert all(answer["text"] for answer in answers)
    low, high = figures["intervals_95"]["qei"]
    assert low <= figures["qei"] <= high
    text = (folder / "report.md").read_text()
    assert "## Benchmarks" in text
    assert "heldout.perplexity over" in text  # where the index's quality comes from


@pytest.mark.slow
def test_what_the_provider_writes_is_what_core_reads(folder: Path) -> None:
    raw = pq.read_table(folder / "raw/shard_000.parquet")
    assert raw.schema.equals(RAW_SCHEMA)
    kd = pq.read_table(folder / "data/kd_shard_000.parquet")
    for completion in raw.to_pylist():
        rows = [row for row in kd.to_pylist() if row["prompt_idx"] == completion["prompt_idx"]]
        ids = completion["prompt_ids"] + completion["token_ids"]
        assert [row["teacher_sample_id"] for row in rows] == ids
        response = rows[len(completion["prompt_ids"]) :]
        assert b"".join(row["teacher_sample_text"] for row in response).startswith(completion["text"])
        first = 0
        for row, count in zip(response, completion["candidate_counts"], strict=True):
            assert row["has_kd"]
            here = slice(first, first + count)
            said = dict(zip(completion["candidate_ids"][here], completion["candidate_logprobs"][here], strict=True))
            stored = dict(zip(row["topk_ids"], row["topk_logprobs"], strict=True))
            assert stored == pytest.approx(said, rel=1e-3)
            first += count


@pytest.mark.slow
def test_the_checkpoint_opens_in_transformers(folder: Path) -> None:
    import bitnet_core.model  # noqa: F401 -- registers the architecture

    checkpoint = folder / "checkpoints/step_4"
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert model.generate(**ids, max_new_tokens=3, do_sample=False).shape[1] == ids["input_ids"].shape[1] + 3


@pytest.mark.slow
def test_the_export_answers_in_llama_cpp(folder: Path) -> None:
    file = folder / "exports/student-tq2_0.gguf"
    tokenizer = AutoTokenizer.from_pretrained(folder / "checkpoints/step_4")
    text = "def f(x):\n    return x + 12345  # naïve café 東京\n\n1. don't"
    with llama_cpp(file) as llama:
        assert llama.tokenize(text) == tokenizer(text, add_special_tokens=False).input_ids
        answer = llama.chat([{"role": "user", "content": "Hi"}], max_tokens=4)
    assert answer["usage"]["completion_tokens"] >= 1
    assert "FROM ./student-tq2_0.gguf" in (folder / "exports/Modelfile").read_text()
    assert f"exports/{file.name}".replace("_", "\\_") in (folder / "report.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "runtime"), [(".", "A4, fake quantisation"), ("exports/student-tq2_0.gguf", "llama.cpp")]
)
def test_the_result_answers_on_the_command_line(bitnet: Any, folder: Path, place: str, runtime: str) -> None:
    done = CliRunner().invoke(cli, ["generate", str(folder / place), "Hi", "--max-new-tokens", "4", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert runtime in found["runtime"]
    assert 1 <= found["tokens"] <= 4
    streamed = bitnet("generate", str(folder / place), "Hi", "--max-new-tokens", "4")
    assert (streamed.stdout, streamed.stderr) == (found["text"] + "\n", "")


@pytest.mark.slow
def test_the_teacher_of_the_run_answers_beside_it(folder: Path) -> None:
    question = "What is the capital of France?"
    done = CliRunner().invoke(cli, ["compare", str(folder), question, "--max-new-tokens", "8", "--json"])
    assert done.exit_code == 0, done.output
    (each,) = json.loads(done.stdout)["answers"]
    assert "Paris" in each["teacher"]["text"]
    assert each["student"]["tokens"] >= 1


@pytest.mark.slow
def test_a_second_run_skips_everything_and_says_why(bitnet: Any, folder: Path) -> None:
    output = again(bitnet, folder)
    for stage in STAGES:
        line = next(line for line in output.splitlines() if line.startswith(stage))
        assert "skipped" in line
        assert "same settings and inputs" in line


@pytest.mark.slow
def test_a_changed_setting_redoes_what_depends_on_it(
    tiny_copy: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, settings = tiny_copy
    run(QUICKSTART, settings | {"train.steps": 2})
    output = " ".join(capsys.readouterr().out.split())
    assert "train.steps 4 → 2" in output
    skipped = [stage for stage in [*STAGES, "calibrate"] if f" {stage} skipped" in output]
    assert skipped == ["baseline", "collect", "project", "calibrate"]  # storage: the copy lies elsewhere
    assert report(folder)["checkpoint"] == "step_2"


@pytest.mark.slow
def test_the_same_run_twice_gives_the_same_student(tiny_place: Path, tmp_path: Path) -> None:
    """With a tiny teacher; tests/test_durable_run.py has the real one."""
    one = tiny_place / "runs/quickstart"
    other = run(QUICKSTART, tiny_settings(tmp_path, tiny_place / "teacher"), quiet=True)
    first, second = (load_file(path / "checkpoints/step_4/model.safetensors") for path in (one, other))
    assert all(first[name].equal(second[name]) for name in first)
    assert report(one)["heldout_kl"] == report(other)["heldout_kl"]


@pytest.mark.slow
def test_a_student_with_another_tokenizer(bitnet: Any, folder: Path, tmp_path: Path) -> None:
    """The same answers, projected by bytes into Mistral's tokenizer; the teacher is not asked again."""
    shutil.copytree(folder, tmp_path / "ci")
    tokenizer = tokenizer_folder("mistral", tmp_path)
    (tmp_path / "plain.jinja").write_text("{% for m in messages %}{{ m['content'] }}\n{% endfor %}")
    output = again(
        bitnet, tmp_path / "ci", "--set", f'project.tokenizer="{tokenizer}"',
        "--set", f'project.chat_template="{tmp_path / "plain.jinja"}"', "--set", 'student.init_from=""',
        "--set", "student.layers=[]", "--set", "student.hidden_size=128", "--set", "student.intermediate_size=256",
    )  # fmt: skip
    skipped = [line.split()[0] for line in output.splitlines() if "skipped" in line]
    assert skipped == ["baseline", "collect", "calibrate"]
    figures = report(tmp_path / "ci")
    assert 0 < figures["heldout_kl"] < figures["untrained_kl"]
    kd = pq.read_table(tmp_path / "ci/data/kd_shard_000.parquet").to_pylist()
    assert sum(row["has_kd"] for row in kd) > 0.8 * sum(not row["is_prompt"] for row in kd)
    first = [row for row in kd if row["prompt_idx"] == 0 and not row["is_prompt"]]
    said = pq.read_table(tmp_path / "ci/raw/shard_000.parquet").to_pylist()[0]["text"]
    assert b"".join(row["teacher_sample_text"] for row in first).startswith(said)


@pytest.mark.slow
def test_one_step_as_in_continuous_integration(bitnet: Any, tmp_path: Path) -> None:
    output = again(bitnet, tmp_path / "ci", "--stages", "storage")
    assert "storage" in output
    assert not (tmp_path / "ci/stages/collect").exists()
    (tmp_path / "ci/stages/storage/done.json").unlink()
    result = bitnet("run", "manifests/ci.toml", "--stages", "train", DRIVE_ROOT=str(tmp_path))
    assert result.returncode == 2
    assert "project" in result.stdout + result.stderr  # names the stage that makes the missing traces


@pytest.mark.slow
def test_sanity() -> None:
    result = CliRunner().invoke(cli, ["sanity"])
    assert result.exit_code == 0, result.output


@pytest.mark.slow
@pytest.mark.parametrize("manifest", sorted(Path(__file__).parents[1].glob("manifests/*.toml")), ids=lambda p: p.stem)
def test_every_shipped_manifest_is_planned(bitnet: Any, manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").touch()
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    environment = {"DRIVE_ROOT": str(tmp_path), "STUDENT_TOKENIZER": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    result = bitnet("plan", str(manifest), "--manifest", **environment, HF_HOME=str(tmp_path / "hub"))
    assert result.returncode in (0, 2), result.stderr
    told = re.findall(r".*  → .*", result.stdout)
    of_hub = [each for each in told if "HF_HUB_OFFLINE is set" in each or "OfflineModeIsEnabled" in each]
    assert bool(of_hub) == (manifest.stem in ("one-gpu", "own"))  # they name models of the Hub, which no test asks
    problems = [each for each in told if each not in of_hub]
    if 'precision = "fp16"' in manifest.read_text() and best_device().type == "cpu":  # what a T4 is fast at
        assert len(problems) == 1
        assert 'train.precision = "fp16" on a CPU' in problems[0]
    elif manifest.stem == "own":  # it names a file of the reader's
        assert problems == [
            f"  {manifest.parent}/prompts.jsonl: there is no such file  → correct the path, relative to the manifest"
        ]
    else:
        assert problems == []
    named = re.search(r"^stages = \[(.*?)\]", result.stdout, re.DOTALL | re.MULTILINE)
    assert named
    stages = re.findall(r'"(\w+)"', named[1])
    assert {"storage", "report"} <= set(stages)
    for stage in stages:
        assert re.search(rf"^  {stage} +(run|skip|can.t run) ", result.stdout, re.MULTILINE), stage


@pytest.mark.slow
def test_two_processes_train_too(tiny_copy: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    folder, settings = tiny_copy
    alone = json.loads((folder / "stages/train/done.json").read_text())["summary"]
    run(QUICKSTART, settings | {"train.devices": 2}, stages=["train"], start="train")
    assert "4 steps" in capsys.readouterr().out
    summary = json.loads((folder / "stages/train/done.json").read_text())["summary"]
    assert (summary["processes"], summary["steps"]) == (2, 4)
    assert summary["seen_tokens"] == alone["seen_tokens"]
    assert summary["last"]["loss"] == pytest.approx(alone["last"]["loss"], rel=0.02)


@pytest.mark.slow
def test_a_training_error_of_many_processes_is_told(
    tiny_copy: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, settings = tiny_copy
    for shard in (folder / "data").glob("*.parquet"):
        shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(RunFailedError, match=r"kd_shard_000\.parquet") as caught:
        run(QUICKSTART, settings | {"train.devices": 2}, stages=["train"], start="train")
    assert "Traceback" not in f"{caught.value}{capsys.readouterr().out}"
