"""`bitnet export` and the export stage, on a run folder made by hand."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from bitnet_cli import run_folder
from bitnet_cli.main import cli
from bitnet_cli.report.read_run import read_run
from bitnet_cli.report.write_report import report_blocks
from bitnet_cli.stages.export import result_files
from bitnet_core.model import BitNetKDEConfig, BitNetKDEForCausalLM

MANIFEST = """
manifest_version = 1
[run]
name = "tea"
stages = ["storage", "export", "report"]
[store]
kind = "local"
root = "."
[export]
kinds = ["packed"]
[export.gguf]
types = ["f16"]
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student") / "step_3"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["tea and more tea for the two of us"] * 3, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    config = BitNetKDEConfig(
        vocab_size=300, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    BitNetKDEForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture
def run(checkpoint: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "tea"
    shutil.copytree(checkpoint, folder / "checkpoints/step_3")
    (folder / "manifest.resolved.toml").write_text(MANIFEST)
    return folder


def bitnet(*arguments: Any, **environment: str) -> Result:
    return CliRunner().invoke(cli, [str(each) for each in arguments], env=environment)


def test_a_run_folder_exports_what_its_manifest_says_into_exports(run: Path) -> None:
    done = bitnet("export", run)
    assert done.exit_code == 0, done.output
    assert "exports/packed" in done.output
    assert sorted(path.name for path in (run / "exports").iterdir()) == ["exports.json", "packed"]
    assert "# tea" in (run / "exports/packed/README.md").read_text()


def test_to_chooses_and_the_manifests_options_still_count(run: Path) -> None:
    assert bitnet("export", run / "checkpoints/step_3", "--to", "gguf").exit_code == 0
    assert sorted(path.name for path in (run / "exports").iterdir()) == [
        "Modelfile",
        "exports.json",
        "student-f16.gguf",
    ]


def test_set_changes_an_option_and_out_the_place_and_json_is_one_value(run: Path, tmp_path: Path) -> None:
    done = bitnet(
        "export", run, "--to", "gguf", "--set", 'export.gguf.types=["tq2_0"]', "--out", tmp_path / "o", "--json"
    )
    assert done.exit_code == 0, done.output
    exports = json.loads(done.stdout)["exported"]["exports"]
    assert exports["student-tq2_0.gguf"]["padded"].startswith("hidden 64 → 256, FFN 64 → 256, heads 2 → 8")
    assert (tmp_path / "o/student-tq2_0.gguf").stat().st_size == exports["student-tq2_0.gguf"]["bytes"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere",), "nowhere: no such folder"),
        (("{run}", "--to", "ggfu"), "did you mean 'gguf'?"),
        (("{run}", "--to", "hf", "--set", "train.steps=3"), "--set train.steps: only export.* can be set here"),
        (("{run}", "--to", "hf", "--set", "export.hf.push=3"), "export.hf.push: unknown key"),
        (("{elsewhere}", "--to", "hf"), "say where the exports go with --out DIR"),
        (("{elsewhere}",), "nothing says what to export"),
        (("{run}", "--check"), "there are no exports to check"),
    ],
)
def test_what_is_wrong_is_told_without_a_traceback(
    run: Path, checkpoint: Path, arguments: tuple[str, ...], said: str
) -> None:
    done = bitnet("export", *(each.format(run=run, elsewhere=checkpoint) for each in arguments))
    assert done.exit_code == 2
    assert said in done.output
    assert "Traceback" not in done.output
    assert not (run / "exports").exists()


def test_the_check_passes_for_what_was_written_and_fails_for_another_checkpoint(run: Path) -> None:
    done = bitnet("export", run, "--check", "--to", "packed")
    assert done.exit_code == 0, done.output
    assert "codes that differ" in done.output
    shutil.copytree(run / "checkpoints/step_3", run / "checkpoints/step_4")
    done = bitnet("export", run, "--check")
    assert done.exit_code == 2
    assert "packed was made from step_3, not from step_4" in done.output


def manifest(run: Path) -> Path:
    file = run.parent / "tea.toml"
    file.write_text(MANIFEST)
    return file


def test_the_stage_writes_skips_and_redoes_only_its_own(run: Path) -> None:
    done = bitnet("run", manifest(run))
    assert done.exit_code == 0, done.output
    report = json.loads((run / run_folder.EXPORT).read_text())
    assert report["checkpoint"] == "step_3"
    mine = run / "exports/mine.txt"
    mine.write_text("a note of my own")
    assert "export    skipped: done" in bitnet("run", manifest(run)).output.replace("  skipped", "  skipped")
    (run / "exports/packed/config.json").write_text("{}")
    again = bitnet("run", manifest(run))
    assert "exports/packed/config.json was changed" in again.output
    assert again.exit_code == 0
    assert json.loads((run / "exports/packed/config.json").read_text())["packed"] is True
    assert mine.read_text() == "a note of my own"
    text = (run / "report.md").read_text()
    assert "exports/packed" in text
    assert "## Exports" in text


def test_a_stage_that_would_overwrite_somebodys_file_stops(run: Path) -> None:
    (run / "exports/packed").mkdir(parents=True)
    done = bitnet("run", manifest(run))
    assert done.exit_code == 2
    assert "is no earlier export of this run" in done.output


def test_the_report_lists_the_exports(run: Path) -> None:
    bitnet("run", manifest(run))
    record = read_run(run)
    assert record.done["export"].summary["exports"]["packed"]["activation_bits"] == 8
    assert any("exports/packed" in str(block) for block in report_blocks(record))


def test_only_the_files_that_the_report_names_are_watched(run: Path) -> None:
    bitnet("run", manifest(run))
    (run / "exports/mine.txt").write_text("x")
    found = [path.relative_to(run).as_posix() for path in result_files(run, run_folder.EXPORT)]
    assert found[0] == run_folder.EXPORT
    assert "exports/packed/model.safetensors" in found
    assert "exports/mine.txt" not in found
