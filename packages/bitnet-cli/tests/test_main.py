"""The command line: messages, exit codes, and what it imports."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from bitnet_cli import run_folder
from bitnet_cli.main import cli
from bitnet_cli.stages.open_teacher import TeacherHandle

HEAVY = ("torch", "transformers", "pyarrow", "safetensors", "accelerate")
PROBE = """
import sys
from bitnet_cli.main import cli
try:
    cli(sys.argv[1:], prog_name="bitnet")
except SystemExit as stop:
    code = stop.code or 0
loaded = [name for name in {heavy!r} if name in sys.modules]
print("loaded:", loaded, file=sys.stderr)
sys.exit(code)
"""

MANIFEST = """
manifest_version = 1
[run]
name = "tiny"
stages = ["storage", "baseline", "collect", "report"]
[store]
kind = "local"
root = "runs"
[teacher]
kind = "local"
[baseline]
prompts = "prompts.txt"
max_prompts = 2
max_new_tokens = 10
[collect]
prompts = "prompts.txt"
max_new_tokens = 5
"""


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SKIP_EXTERNAL", raising=False)
    (tmp_path / "prompts.txt").write_text("one\ntwo\nthree\n")
    path = tmp_path / "tiny.toml"
    path.write_text(MANIFEST)
    return path


def bitnet(*arguments: str, runner: CliRunner | None = None) -> tuple[int, str]:
    result = (runner or CliRunner()).invoke(cli, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def loaded_by(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROBE.format(heavy=HEAVY), *arguments],
        capture_output=True, text=True, cwd=cwd, check=False, env=os.environ | {"COLUMNS": "100"} | environment,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["--help"],
        ["plugins"],
        ["plan", "tiny.toml"],
        ["run", "--help"],
        ["manifests", "ls"],
        ["runs", "ls", "--store", "."],
    ],
)
def test_light_commands_load_nothing_heavy(manifest: Path, command: list[str]) -> None:
    result = loaded_by(*command, cwd=manifest.parent)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "loaded: []" in result.stderr


@pytest.mark.slow
def test_a_run_that_skips_everything_loads_nothing_heavy(manifest: Path) -> None:
    command = ["run", "tiny.toml", "--stages", "storage"]
    assert loaded_by(*command, cwd=manifest.parent).returncode == 0
    result = loaded_by(*command, cwd=manifest.parent)
    assert "storage   skipped: done" in result.stdout
    assert "loaded: []" in result.stderr


@pytest.mark.parametrize("command", ["", "run", "plan", "report"])
def test_help_has_examples(command: str) -> None:
    code, output = bitnet(*([command] if command else []), "--help")
    assert code == 0
    assert "Example" in output
    assert f"bitnet {command or 'run'} " in output


def test_run_makes_the_folder(manifest: Path) -> None:
    code, output = bitnet("run", str(manifest), "--stages", "storage,report")
    assert code == 0, output
    folder = manifest.parent / "runs" / "tiny"
    assert {path.name for path in folder.iterdir() if path.is_dir()} == set(run_folder.FOLDERS)
    assert json.loads((folder / "reports" / "storage.json").read_text())["run_folder"] == str(folder)
    assert 'name = "tiny"' in (folder / "manifest.resolved.toml").read_text()
    environment = json.loads((folder / "environment.json").read_text())
    assert {"git", "uv_lock_sha256", "python", "platform", "cpu", "packages", "plugins"} <= set(environment)
    assert "attrs" in environment["packages"]
    assert "No verdict" in output
    assert (folder / "report.html").is_file()


def test_no_secret_reaches_the_run_folder(manifest: Path) -> None:
    secret = "swordfish-4711"
    (manifest.parent / ".env").write_text(f"OPENAI_API_KEY={secret}\n")
    assert bitnet("run", str(manifest), "--stages", "storage,report")[0] == 0
    for path in (manifest.parent / "runs").rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path


def test_plan_says_what_would_happen_and_does_nothing(manifest: Path) -> None:
    code, output = bitnet("plan", str(manifest), "--stages", "storage,baseline,collect")
    assert code == 0, output
    assert "Manifest, resolved" not in output
    assert "time: known once the stage baseline has timed the teacher here" in output
    assert "price" not in output, "a model on this machine has none"
    assert "storage   run        not done yet" in output
    assert f"run folder: {manifest.parent / 'runs' / 'tiny'}\n" in output
    assert "baseline prompts: 2, at most 20 tokens" in output
    assert "completions to sample: 3, at most 15 tokens" in output
    assert not (manifest.parent / "runs").exists()


def test_plan_of_a_done_stage_and_of_a_change(manifest: Path) -> None:
    bitnet("run", str(manifest), "--stages", "storage")
    _, output = bitnet("plan", str(manifest), "--stages", "storage")
    assert "storage   skip       done 2" in output
    assert "UTC with the same settings and inputs\n" in output, "no line is cut"
    _, output = bitnet("plan", str(manifest), "--from", "storage", "--stages", "storage")
    assert "storage   run        --from storage" in output


def test_plan_shows_the_manifest_when_asked_and_prints_json(manifest: Path) -> None:
    _, output = bitnet("plan", str(manifest), "--manifest")
    assert output.partition("Manifest, resolved")[2].count('name = "tiny"') == 1
    code, output = bitnet("plan", str(manifest), "--json", "--set", "baseline.prompts=none.txt")
    found = json.loads(output)
    assert code == 2
    assert found["problems"] == [
        {
            "why": f"{manifest.parent / 'none.txt'}: there is no such file",
            "fix": "correct the path, relative to the manifest",
        }
    ]
    assert found["stages"][0] == {"stage": "storage", "would": "run", "why": "not done yet"}
    assert found["estimates"]["completions to sample"] == "3, at most 15 tokens"
    assert found["asked_first"] == ["prompt 1: user: one", "prompt 2: user: two"]
    assert found["manifest"]["collect"]["max_new_tokens"] == 5
    assert found["run_folder"] == str(manifest.parent / "runs/tiny")


def test_plan_tells_how_long_it_takes_where_the_teacher_was_timed_beside(manifest: Path) -> None:
    from bitnet_cli.environment import cpu_name

    beside = manifest.parent / "runs/beside"
    (beside / "reports").mkdir(parents=True)
    report = {"tokens_per_second": 0.5, "teacher": {"model": "smollm2-135m-instruct"}}
    (beside / "reports/teacher_baseline.json").write_text(json.dumps(report))
    (beside / "environment.json").write_text(json.dumps({"cpu": cpu_name()}))
    _, output = bitnet("plan", str(manifest), "--stages", "storage,baseline,collect")
    assert "time: about 48 s (baseline 40 s, collect 8 s), by the baseline of run beside\n" in output
    # What will not run is not counted.
    _, output = bitnet("plan", str(manifest), "--stages", "storage,collect")
    assert "time: about 8 s (collect 8 s), by the baseline of run beside\n" in output
    assert "baseline prompts" not in output


def test_plan_names_problems(manifest: Path) -> None:
    (manifest.parent / "prompts.txt").unlink()
    code, output = bitnet("plan", str(manifest))
    assert code == 2
    assert output.lstrip().startswith("Problems"), "first"
    assert output.count("prompts.txt: there is no such file") == 1


def test_plan_shows_what_is_asked_first_and_tells_of_rows_that_can_not_be_used(manifest: Path) -> None:
    rows: list[dict[str, object]] = [
        {"system": "Be brief.", "conversations": [{"from": "human", "value": f"Tell me\nof {number}"}]}
        for number in ("one", "two")
    ]
    (manifest.parent / "chats.json").write_text(json.dumps([*rows, {"conversations": []}, *rows]))
    chats = ("plan", str(manifest), "--set", 'collect.prompts="chats.json"')
    code, output = bitnet(*chats)
    assert code == 2
    assert 'chats.json, line 1: "conversations" is an empty list' in output.partition("Stages")[0]
    code, output = bitnet(*chats, "--set", "collect.skip_unusable=true")
    assert code == 0
    asked, _, notes = output.partition("Asked first\n")[2].partition("Notes\n")
    assert asked.strip() == (
        "prompt 1: system: Be brief. | user: Tell me of one\n  prompt 2: system: Be brief. | user: Tell me of two"
    )
    assert "chats.json: 1 of 5 rows are left out (line 1: " in notes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nowhere.toml"], "error: nowhere.toml: no such file"),
        (["plan", "nowhere.toml"], "error: nowhere.toml: no such file"),
        (["run", "tiny.toml", "--stages", ","], "error: --stages: names no stage  → write e.g. --stages train"),
        (["run", "tiny.toml", "--env-file", "no.env"], "error: no.env: no such file"),
        (["run", "tiny.toml", "--discard-paid"], "error: This deletes everything that the teacher has said"),
        (["report", "."], "error: . is no run folder  → name one that `bitnet run` made, e.g. runs/quickstart"),
        (["report", "nowhere"], "error: nowhere is no run folder"),
    ],
)  # fmt: skip
def test_user_errors(manifest: Path, arguments: list[str], message: str) -> None:
    code, output = bitnet(*arguments)
    assert code == 2
    assert output.startswith(message)
    assert "Traceback" not in output
    assert not (manifest.parent / "runs").exists()


def test_a_folder_of_runs_is_no_run(manifest: Path) -> None:
    folder = manifest.parent / "runs"
    assert bitnet("run", str(manifest), "--stages", "storage")[0] == 0
    code, output = bitnet("report", str(folder))
    assert code == 2
    assert output == f"error: {folder} is no run folder  → name one of {folder / 'tiny'}\n"


def test_unknown_stage(manifest: Path) -> None:
    for command in ("run", "plan"):
        code, output = bitnet(command, str(manifest), "--stages", "trian")
        assert code == 2
        assert '--stages: there is no stage "trian"  → did you mean "train"?' in output


def test_discard_paid_with_yes(manifest: Path) -> None:
    raw = manifest.parent / "runs" / "tiny" / "raw"
    raw.mkdir(parents=True)
    (raw / "shard_000.parquet").write_text("paid")
    code, output = bitnet("run", str(manifest), "--stages", "storage", "--discard-paid", "--yes")
    assert code == 0, output
    assert list(raw.iterdir()) == []


def test_report_of_a_run_folder(manifest: Path) -> None:
    bitnet("run", str(manifest), "--stages", "storage")
    folder = manifest.parent / "runs" / "tiny"
    code, output = bitnet("report", str(folder))
    assert code == 0
    assert output.splitlines()[-1] == f"report: {folder / 'report.html'}"
    assert (folder / "report.md").is_file()


def test_go_on_command_can_be_typed_again() -> None:
    from bitnet_cli.pipeline.engine import go_on_command

    command = go_on_command(Path("my manifests/a.toml"), ('run.name="x"',), Path("ci.env"))
    assert command == "bitnet run 'my manifests/a.toml' --set 'run.name=\"x\"' --env-file ci.env"


def test_sanity_says_each_check_with_its_time() -> None:
    code, output = bitnet("sanity")
    assert code == 0, output
    lines = output.splitlines()
    assert [line[2:24].strip() for line in lines] == ["imports", "student step", "trace through the loss", "plugins"]
    assert all(line.startswith("✓ ") and " s  " in line for line in lines)


def test_sanity_goes_on_after_a_failure() -> None:
    import io

    from rich.console import Console

    from bitnet_cli.commands.sanity import run_sanity

    def broken() -> str:
        raise ImportError("no torch")

    stream = io.StringIO()
    assert run_sanity(Console(file=stream, width=200), (("first", broken), ("second", lambda: "fine"))) == 1
    first, second = stream.getvalue().splitlines()
    assert first.startswith("✗ first")
    assert first.endswith("ImportError: no torch")
    assert second.startswith("✓ second")


def test_plan_follows_a_change_through_the_stages(manifest: Path) -> None:
    bitnet("run", str(manifest), "--stages", "storage,report")
    code, output = bitnet("plan", str(manifest), "--set", 'store.cache_root="cache"')
    assert code == 0, output
    assert "storage   run        store.cache_root unset → " in output
    assert "report    run        reads what storage and baseline and collect make again" in output


STUDENT = """
[project]
tokenizer = "{folder}"
[student]
init_from = "{folder}"
[loss]
kind = "topk_other"
[train]
steps = 10
batch_size = 4
max_seq_len = 100
budget_tokens = 1000
"""


def test_plan_uses_the_counts_of_the_traces_and_looks_for_folders(manifest: Path) -> None:
    stages = MANIFEST.replace('"collect", "report"]', '"collect", "project", "train"]')
    manifest.write_text(stages + STUDENT.format(folder="nowhere"))
    code, output = bitnet("plan", str(manifest), "--stages", "project,train")
    assert code == 2
    assert f"project.tokenizer: there is no folder {manifest.parent / 'nowhere'}" not in output, "it can't run yet"
    raw = manifest.parent / "runs" / "tiny" / "raw" / "shard_000.parquet"
    raw.parent.mkdir(parents=True)
    raw.write_text("answers")
    code, output = bitnet("plan", str(manifest), "--stages", "project,train")
    assert code == 2
    for name in ("project.tokenizer", "student.init_from"):
        assert f"{name}: there is no folder {manifest.parent / 'nowhere'}" in output
    assert "too short for its flip" not in output

    raw.unlink()
    (manifest.parent / "nowhere").mkdir()
    traces = manifest.parent / "runs" / "tiny" / "data" / "kd_shard_000.parquet"
    traces.parent.mkdir()
    traces.write_text("x")
    run_folder.write_done(
        manifest.parent / "runs" / "tiny",
        run_folder.Done(
            stage="project", fingerprint="f", finished="2026-11-22T23:00:00+00:00", seconds=1.0, settings={}, files={},
            formats={}, inputs={}, packages={}, summary={"splits": {"train": {"rows": 50, "documents": 5}}},
            outputs={"data/kd_shard_*.parquet": run_folder.Artifact(digest="d", files={})},
        ),
    )  # fmt: skip
    sets = ("--set", "student.num_hidden_layers=4", "--set", "train.decay_fraction=0.4")
    code, output = bitnet("plan", str(manifest), "--stages", "train", *sets)
    assert code == 2, "an empty folder is no model"
    assert "student.num_hidden_layers = 4: without effect, since student.init_from says" in output
    assert "train.decay_fraction = 0.4: without effect" in output
    assert "10 steps see about 400;" in output
    assert "training: 10 steps" in output
    assert "baseline prompts" not in output, "only the stages in question are estimated"
    assert "collection: " not in output


SERVER = """
[teacher]
kind = "openai-compatible"
base_url = "http://127.0.0.1:9/v1"
model = "any"
"""


def test_a_teacher_that_can_not_give_what_is_wanted_stops_the_plan_and_a_run_before_it_is_asked(
    manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = MANIFEST.replace('"collect", "report"]', '"collect", "project", "train"]') + STUDENT
    written = written.replace('[teacher]\nkind = "local"\n', SERVER)
    written = written.replace("[collect]", '[collect]\ntop_k = 30\ntexts = "prompts.txt"')
    manifest.write_text(written.format(folder="teacher"))
    problems = (
        'collect.texts needs a teacher that scores given text, and "openai-compatible" does not  → take',
        'collect.top_k is 30, and "openai-compatible" gives at most 20 candidates  → set collect.top_k = 20',
        'project.tokenizer = "teacher", but teacher "openai-compatible" has no model folder on this machine  → ',
        'student.init_from = "teacher", but teacher "openai-compatible" has no model folder on this machine  → ',
    )
    code, output = bitnet("plan", str(manifest))
    assert code == 2
    assert [output.count(problem) for problem in problems] == [1, 1, 1, 1]
    asked: list[str] = []
    monkeypatch.setattr(TeacherHandle, "ask", lambda self, question: asked.append("paid"))
    code, output = bitnet("run", str(manifest))
    assert code == 2
    assert "nothing was asked of the teacher: a later stage could not run" in output
    assert [output.count(problem) for problem in problems] == [1, 1, 1, 1]
    assert asked == []


def test_a_folder_that_is_not_there_stops_a_run_before_the_teacher_is_asked(
    manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = MANIFEST.replace('"collect", "report"]', '"collect", "project", "train"]')
    manifest.write_text(written + STUDENT.format(folder="nowhere"))
    asked: list[str] = []
    monkeypatch.setattr(TeacherHandle, "ask", lambda self, question: asked.append("paid"))
    code, output = bitnet("run", str(manifest))
    assert code == 2
    for name in ("project.tokenizer", "student.init_from"):
        assert output.count(f"{name}: there is no folder {manifest.parent / 'nowhere'}") == 1
    assert asked == []


def test_a_start_and_a_template_that_can_not_be_stop_a_run_before_the_teacher_is_asked(
    manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tokenizer without a chat template, one that is no Jinja, and heads that don't divide the width."""
    folder = manifest.parent / "start"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    sizes = {"model_type": "qwen3", "hidden_size": 256, "num_attention_heads": 6, "num_key_value_heads": 2}
    (folder / "config.json").write_text(json.dumps(sizes | {"head_dim": 64}))
    template = manifest.parent / "mine.jinja"
    template.write_text("{% for m in messages %}")
    asked: list[str] = []
    monkeypatch.setattr(TeacherHandle, "ask", lambda self, question: asked.append("paid"))
    written = MANIFEST.replace('"collect", "report"]', '"collect", "project", "train"]') + STUDENT.format(
        folder="start"
    )
    heads = f"student.init_from: {folder} can't start a student: hidden_size = 256 is not a multiple of"
    lacking = f"project.tokenizer: {folder} has no chat template"
    faulty = f"project.chat_template: {template}: it can't render a question"
    for own, told, untold in (("", lacking, faulty), ('chat_template = "mine.jinja"', faulty, lacking)):
        manifest.write_text(written.replace("[project]", f"[project]\n{own}"))
        for command in ("plan", "run"):
            code, output = bitnet(command, str(manifest))
            assert code == 2
            assert [output.count(problem) for problem in (heads, told, untold)] == [1, 1, 0], output
    assert asked == []
    template.write_text("{{ messages[0]['content'] }}")
    (folder / "config.json").write_text(json.dumps(sizes | {"num_attention_heads": 4}))
    code, output = bitnet("plan", str(manifest))
    assert code == 0, output


def test_a_plugin_that_no_package_brings() -> None:
    from bitnet_cli.plugins.catalog import Plugins

    none = Plugins(teachers={}, stores={}, losses={}, all=())
    assert str(none.unknown("teacher", "openai")) == (
        "there is no teacher plugin 'openai'; installed: none"
        "  → install the package that brings it with pip install; `bitnet plugins` shows what is there"
    )


def test_a_failure_is_told_on_stderr_and_keeps_the_stages(manifest: Path) -> None:
    result = CliRunner().invoke(
        cli, ["run", str(manifest), "--stages", "report,storage", "--set", 'store.root="prompts.txt"']
    )
    assert result.exit_code != 0
    assert "the preparation failed" in result.stderr
    assert result.stderr.rstrip().endswith("--stages report,storage")
    assert "failed" not in result.stdout


@pytest.mark.slow
def test_an_ascii_terminal_is_no_error(manifest: Path) -> None:
    result = loaded_by("run", "tiny.toml", "--stages", "storage", cwd=manifest.parent, PYTHONIOENCODING="ascii")
    assert result.returncode == 0, result.stderr
    assert "BitNet KDE ? run tiny" in result.stdout


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("target", ["/dev/full", "closed pipe"])
def test_a_run_goes_on_without_its_output(manifest: Path, target: str) -> None:
    if target == "closed pipe":
        reading, writing = os.pipe()
        os.close(reading)
    else:
        writing = os.open(target, os.O_WRONLY)
    result = subprocess.run(
        [sys.executable, "-c", PROBE.format(heavy=()), "run", "tiny.toml", "--stages", "storage,report"],
        stdout=writing, stderr=subprocess.PIPE, text=True, cwd=manifest.parent, check=False,
    )  # fmt: skip
    os.close(writing)
    assert result.returncode == 0, result.stderr
    assert "the output can't be written" in result.stderr
    folder = manifest.parent / "runs" / "tiny"
    assert (folder / "report.md").is_file()
    assert "report    done in" in (folder / "logs" / "run.log").read_text()


def test_ctrl_c_before_the_first_stage(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bitnet_cli.pipeline.engine.open_run", interrupted)
    result = CliRunner().invoke(cli, ["run", str(manifest)])
    assert result.exit_code == 130
    assert result.output.startswith("stopped; ")
