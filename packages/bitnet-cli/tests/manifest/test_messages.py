"""What a person reads when a manifest is wrong, word by word."""

from pathlib import Path
from typing import Any

import pytest

from bitnet_cli.errors import UserError
from bitnet_cli.manifest import load_manifest
from bitnet_cli.plugins.catalog import Plugins

Problems = Any
Load = Any


def in_train(whole: str, lines: str) -> str:
    return whole.replace("steps = 20", lines)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("steps = 1.9", "train.steps: expected an integer, got 1.9 (a float)  → write steps = 2"),
        ("steps = 200.0", "train.steps: expected an integer, got 200.0 (a float)  → write steps = 200"),
        ("steps = inf", "train.steps: expected an integer, got inf (a float)"),
        ("steps = true", "train.steps: expected an integer, got true (a boolean)"),
        ('steps = "200"', 'train.steps: expected an integer, got "200" (a string)  → write steps = 200'),
        ('steps = "many"', 'train.steps: expected an integer, got "many" (a string)'),
        ("steps = [1]", "train.steps: expected an integer, got an array"),
        ("steps = { a = 1 }", "train.steps: expected an integer, got a table"),
        ("steps = 2026-11-22", "train.steps: expected an integer, got 2026-11-22 (a date)"),
        ("steps = 2026-11-22T10:00:00", "train.steps: expected an integer, got 2026-11-22 10:00:00 (a date-time)"),
        ("steps = 10:00:00", "train.steps: expected an integer, got 10:00:00 (a time)"),
        ("steps = 9223372036854775808", "train.steps: the integer does not fit in 64 bits  → write a smaller one"),
        ("steps = 0", "train.steps: must be > 0: 0"),
        (
            'learning_rate = "3e-4"',
            'train.learning_rate: expected a number, got "3e-4" (a string)  → write learning_rate = 3e-4',
        ),
        ("learning_rate = false", "train.learning_rate: expected a number, got false (a boolean)"),
        ("learning_rate = nan", "train.learning_rate: expected a finite number, got nan"),
        ("flip_fraction = 2", "train.flip_fraction: must be <= 1.0: 2.0"),
        ("precision = 16", 'train.precision: expected a string, got 16 (an integer)  → write precision = "16"'),
        (
            'precision = "bf61"',
            'train.precision: expected one of "auto", "fp32", "bf16", "fp16", got "bf61" (a string)  → '
            'did you mean "bf16"?',
        ),
        ('precision = "${P}"', "train.precision: ${...} is expanded in paths only  → write the value itself"),
        ("stepz = 20", 'train.stepz: unknown key  → did you mean "steps"?'),
        ("batch-size = 20", 'train.batch-size: unknown key  → did you mean "batch_size"?'),
        ('"ba tch" = 20', 'train."ba tch": unknown key  → did you mean "batch_size"?'),
    ],
)
def test_a_wrong_value(problems: Problems, whole: str, line: str, problem: str) -> None:
    assert problems(in_train(whole, line)) == [problem]


def test_a_key_like_nothing_gets_the_list(problems: Problems, whole: str) -> None:
    assert problems(whole.replace("tau = 1.3", "zzz = 1")) == ["loss.zzz: unknown key  → choose one of: tau"]


def test_all_problems_come_at_once(load: Load, whole: str, tmp_path: Path) -> None:
    text = in_train(whole, 'steps = 1.5\nbatch_size = 0\nwarmup = "x"')
    text = text.replace('name = "whole"', 'name = "a/b"').replace("[evaluate]", "[evaluatee]")
    with pytest.raises(UserError) as caught:
        load(text, ['run.name="abc', "run.seed=-1"])
    assert str(caught.value).replace(str(tmp_path), "DIR") == "\n".join(
        [
            "DIR/m.toml: 7 problems",
            "  --set run.name: not a TOML value: Unterminated string  → write a number, true, an array or a string",
            '  [evaluatee]: unknown section  → did you mean "evaluate"?',
            "  run.name: a run's name is one folder's name: 1 to 64 letters, digits, '.', '_' or '-', beginning with a "
            "letter or digit and not ending with a dot; got 'a/b'  → choose another name",
            "  run.seed: must be between 0 and 4294967295: -1  → write another one",
            "  train.steps: expected an integer, got 1.5 (a float)  → write steps = 2",
            "  train.batch_size: must be > 0: 0",
            '  train.warmup: unknown key  → did you mean "warmup_steps"?',
        ]
    )


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            'stages = ["storage", "report"]',
            'stages = "report"',
            'run.stages: expected an array, got "report" (a string)  → write stages = ["report"]',
        ),
        (
            'stages = ["storage", "report"]',
            'stages = ["storage", 3]',
            'run.stages[1]: expected a string, got 3 (an integer)  → write "3"',
        ),
        (
            'stages = ["storage", "report"]',
            'stages = ["storrage", "xyz"]',
            'run.stages: there is no stage "storrage"; there is no stage "xyz"  → did you mean "storage"? choose '
            "one of: storage, dry_run, baseline, collect, project, calibrate, train, evaluate, export, report",
        ),
        (
            'stages = ["storage", "report"]',
            'stages = ["report", "storage", "report"]',
            'run.stages: stages are named twice or out of order  → write ["storage", "report"]',
        ),
        (
            'stages = ["storage", "report"]',
            "stages = []",
            "run.stages: names no stage  → name at least one stage of storage, dry_run, baseline, collect, project, "
            "calibrate, train, evaluate, export, report",
        ),
        ('name = "small"', "", "run.name: missing (a string)  → write name = ..."),
        ('root = "runs"', "", "store.root: missing (a path)  → write root = ..."),
        ('root = "runs"', "root = 3", "store.root: expected a path in quotes, got 3 (an integer)"),
        ('root = "runs"', 'root = ""', "store.root: the path is empty  → name a file or folder"),
        ('root = "runs"', 'root = "a\\u0000b"', "store.root: the path holds a NUL character  → remove it"),
        ('kind = "local"', "", 'store.kind: missing  → write kind = "..." with one of: local'),
        (
            'kind = "local"',
            "kind = 3",
            'store.kind: expected a string, got 3 (an integer)  → write kind = "..." with one of: local',
        ),
        (
            'kind = "local"',
            'kind = "locale"',
            "store.kind: there is no store plugin 'locale'; did you mean 'local'? installed: local  → install the "
            "package that brings it with pip install; `bitnet plugins` shows what is there",
        ),
        ("manifest_version = 1", "", "manifest_version: missing  → write manifest_version = 1 at the top of the file"),
        (
            "manifest_version = 1",
            "manifest_version = 2",
            "DIR/m.toml: manifest_version: this bitnet reads version 1, the file says 2 (an integer)  → update "
            "bitnet-cli, or write manifest_version = 1",
        ),
        (
            "manifest_version = 1",
            "manifest_version = true",
            "DIR/m.toml: manifest_version: expected 1, got true (a boolean)  → write manifest_version = 1",
        ),
        (
            "manifest_version = 1",
            "manifest_version = 1\nsteps = 3",
            "steps: stands outside any section  → move it under [train]",
        ),
        (
            "manifest_version = 1",
            "manifest_version = 1\nextend = 3",
            'extend: unknown key  → did you mean "extends"?',
        ),
        (
            "manifest_version = 1",
            "manifest_version = 1\ntrain = 3",
            "train: expected a table, got 3 (an integer)  → write [train] on a line of its own",
        ),
    ],
)
def test_a_wrong_small_manifest(problems: Problems, small: str, old: str, new: str, problem: str) -> None:
    assert old in small
    assert problems(small.replace(old, new)) == [problem]


def test_an_empty_file(problems: Problems) -> None:
    assert problems("") == [
        "manifest_version: missing  → write manifest_version = 1 at the top of the file",
        "[run]: missing: it names the run  → add a [run] section",
        "[store]: missing: it says where runs live  → add a [store] section",
    ]


def test_the_teacher_is_missed_only_where_something_of_it_is_borrowed(problems: Problems, load: Load) -> None:
    imported = """
manifest_version = 1
[run]
name = "imported"
stages = ["project"]
[store]
kind = "local"
root = "runs"
[project]
"""
    assert problems(imported) == [
        '[teacher]: missing: project.tokenizer = "teacher" is its folder'
        "  → add a [teacher] section, or set project.tokenizer to a folder"
    ]
    assert load(imported + 'tokenizer = "a folder"\n').teacher is None


def test_sections_are_missed_only_by_stages_that_need_them(problems: Problems, load: Load, small: str) -> None:
    assert load(small).train is None
    assert problems(small, ['run.stages=["storage", "train", "evaluate"]']) == [
        '[student]: missing: the stage "train" needs it  → add a [student] section, or leave "train" out of run.stages',
        '[loss]: missing: the stage "train" needs it  → add a [loss] section, or leave "train" out of run.stages',
        '[train]: missing: the stage "train" needs it  → add a [train] section, or leave "train" out of run.stages',
        '[evaluate]: missing: the stage "evaluate" needs it  → add a [evaluate] section, or leave "evaluate" out of '
        "run.stages",
    ]


def test_a_plugins_own_rules_are_checked_too(problems: Problems, whole: str) -> None:
    text = whole.replace('model = "big-1"', 'mode = "chatt"').replace('"END"]', "7]").replace("tau = 1.3", "tau = 0")
    assert problems(text) == [
        "teacher.model: missing (a string)  → write model = ...",
        'teacher.mode: expected one of "chat", "completion", got "chatt" (a string)  → did you mean "chat"?',
        'teacher.stop[1]: expected a string, got 7 (an integer)  → write "7"',
        "loss.tau: must be > 0: 0.0",
    ]


# Files

NAME_ONE = "  → name a manifest; `bitnet manifests ls` shows those that come with bitnet"


def load_problem(path: Path, plugins: Plugins) -> str:
    with pytest.raises(UserError) as caught:
        load_manifest(path, [], plugins, {})
    return str(caught.value).replace(str(path.parent), "DIR")


def test_a_syntax_error_has_file_line_and_column(plugins: Plugins, tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    path.write_text("manifest_version = 1\n[run\n")
    assert load_problem(path, plugins) == (
        "DIR/m.toml:2:5: not TOML: Expected ']' at the end of a table declaration  → correct that line"
    )
    path.write_text('api = "sk-secret0123456789abcdef" oops')
    assert "secret" not in load_problem(path, plugins)


def test_a_missing_file_gets_a_suggestion(plugins: Plugins, tmp_path: Path) -> None:
    path = tmp_path / "quikstart.toml"
    assert load_problem(path, plugins) == "DIR/quikstart.toml: no such file; DIR holds no .toml file" + NAME_ONE
    (tmp_path / "ci.toml").write_text("")
    assert load_problem(path, plugins) == "DIR/quikstart.toml: no such file  → name one of those there: ci.toml"
    (tmp_path / "quickstart.toml").write_text("")
    assert load_problem(path, plugins) == "DIR/quikstart.toml: no such file  → did you mean DIR/quickstart.toml?"
    assert (
        load_problem(tmp_path / "no" / "x.toml", plugins)
        == "DIR/x.toml: no such file; there is no folder DIR" + NAME_ONE
    )


def test_a_manifest_is_found_from_the_folder_above(
    plugins: Plugins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text("")
    with pytest.raises(UserError, match=r"ci: no such file; \. holds no \.toml file"):
        load_manifest(Path("ci"), [], plugins, {})
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests/ci.toml").write_text("")
    for written in ("ci", "ci.toml", "manifest/ci.toml"):
        with pytest.raises(UserError, match=r"no such file  → did you mean manifests/ci\.toml\?$"):
            load_manifest(Path(written), [], plugins, {})


def test_a_folder_is_no_manifest(plugins: Plugins, tmp_path: Path) -> None:
    folder = tmp_path / "manifests"
    folder.mkdir()
    (folder / "ci.toml").write_text("")
    assert load_problem(folder, plugins) == (
        "DIR/manifests: this is a folder, not a manifest  → name one of those there: ci.toml"
    )
    (tmp_path / "f").write_text("")
    assert load_problem(tmp_path / "f" / "x.toml", plugins) == (
        "DIR/x.toml: no such file: a part of this path is a file, not a folder" + NAME_ONE
    )


def test_other_encodings(plugins: Plugins, tmp_path: Path, small: str) -> None:
    path = tmp_path / "m.toml"
    path.write_bytes(b"# caf\xe9\n")
    assert load_problem(path, plugins) == "DIR/m.toml: not UTF-8 (byte 5)  → save the file in UTF-8"
    path.write_bytes(b"\xef\xbb\xbf" + small.encode().replace(b"\n", b"\r\n"))  # as Notepad saves it
    assert load_manifest(path, [], plugins, {}).run.name == "small"


def test_what_the_parser_itself_cannot_take(plugins: Plugins, tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    path.write_text("a = " + "[" * 3000 + "]" * 3000)
    assert load_problem(path, plugins) == "DIR/m.toml: not a manifest: arrays or tables are nested too deep" + NAME_ONE
    path.write_text("a = 1" + "0" * 5000)
    assert (
        load_problem(path, plugins)
        == "DIR/m.toml: not a manifest: an integer does not fit in 64 bits  → write a smaller one"
    )


# Secrets

KEYS = [
    "sk-proj-0123456789abcdefABCDEF",
    "gsk_0123456789abcdefABCDEFGHIJ",
    "AIzaSy0123456789abcdefABCDEFGHIJK",
    "hf_0123456789abcdefABCDEFGH",
    "AKIAIOSFODNN7EXAMPLE",
    "0123456789ABCDEF0123456789ABCDEF",
    "A0123456789ABCDEF0123456789ABCDE",
    "lowercase_name",
    "",
]
NO_NAME = (
    "teacher.api_key_env: expected the name of an environment variable (A-Z, 0-9, _), and this is not one (not shown: "
    'it may be a key)  → put the key in .env as SOME_API_KEY=..., and write the name "SOME_API_KEY" here'
)


@pytest.mark.parametrize("value", [f'"{key}"' for key in KEYS] + ["12345678901", "[1]"])
def test_a_key_in_place_of_its_variables_name_is_refused_and_not_shown(
    problems: Problems, whole: str, value: str
) -> None:
    assert problems(whole.replace('model = "big-1"', f'model = "big-1"\napi_key_env = {value}')) == [NO_NAME]


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "K", "_X2", "AZURE_OPENAI_API_KEY_FOR_THE_SECOND_REGION"])
def test_names_of_variables_are_taken(load: Load, whole: str, name: str) -> None:
    text = whole.replace('model = "big-1"', f'model = "big-1"\napi_key_env = "{name}"')
    assert load(text).teacher.options.api_key_env == name


@pytest.mark.parametrize("key", KEYS[:5])
def test_a_key_is_refused_wherever_it_stands(problems: Problems, whole: str, key: str) -> None:
    for old, field in (('model = "big-1"', "model"), ('adapter = "adapters/one"', "adapter")):
        assert problems(whole.replace(old, f'{field} = "{key}"')) == [
            f"teacher.{field}: this looks like an API key  → put it in .env and write the variable's name in a "
            "*_env key"
        ]
    assert problems(whole.replace('model = "big-1"', f'model = "big-1"\napi_key = "{key}"')) == [
        'teacher.api_key: unknown key  → did you mean "api_key_env"?'
    ]
    assert problems(in_train(whole, f'steps = "{key}"')) == ["train.steps: expected an integer, got a string"]
    assert problems(whole, [f"teacher.model={key}"]) == [
        "--set teacher.model: this looks like an API key  → put it in .env and name its variable in a *_env key"
    ]
