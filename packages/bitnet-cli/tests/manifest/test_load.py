"""What a right manifest becomes: paths, `extends`, `--set`, and back into TOML."""

import os
from pathlib import Path
from typing import Any

import attrs
import pytest
import tomli

from bitnet_cli.errors import UserError
from bitnet_cli.manifest import STAGES, load_manifest, resolved_toml
from bitnet_cli.manifest.overrides import parse_override
from bitnet_cli.manifest.toml_files import merge
from bitnet_cli.plugins.catalog import Plugins
from bitnet_core.config.train import TrainConfig

Problems = Any
Load = Any

WITHOUT_EXPORT = tuple(stage for stage in STAGES if stage not in ("dry_run", "export"))


def test_a_whole_manifest(load: Load, whole: str, tmp_path: Path) -> None:
    manifest = load(whole)
    assert (manifest.run.name, manifest.run.seed, manifest.run.stages) == ("whole", 7, WITHOUT_EXPORT)
    assert manifest.teacher.kind == "hosted"
    assert manifest.teacher.options.stop == ("\n\n", "END")
    assert manifest.train == TrainConfig(steps=20)
    assert manifest.loss.options.tau == 1.3
    assert (manifest.collect.temperature, type(manifest.collect.temperature)) == (1.0, float)
    assert manifest.source == tmp_path / "m.toml"


def test_values_are_plain_types(load: Load, whole: str) -> None:
    options = load(whole).teacher.options
    assert {type(options.model), type(options.stop[0]), type(options.weights)} == {str}


def test_a_manifest_is_frozen(load: Load, small: str) -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        load(small).run.name = "other"


# Paths


def test_relative_paths_start_at_the_manifest(load: Load, whole: str, tmp_path: Path) -> None:
    manifest = load(whole)
    assert manifest.store.options.root == tmp_path.parent / "runs"
    assert manifest.store.options.cache_root == tmp_path.parent / "caches"
    assert manifest.teacher.options.adapter == tmp_path / "adapters" / "one"
    assert Path(manifest.baseline.prompts) == tmp_path / "eval.jsonl"


def test_a_path_field_may_hold_its_word(load: Load, whole: str, tmp_path: Path) -> None:
    assert load(whole).teacher.options.weights == "built-in"
    for word, meant in (("built-in", "built-in"), ("", ""), ("mine", str(tmp_path / "mine"))):
        text = whole.replace('model = "big-1"', f'model = "big-1"\nweights = "{word}"')
        assert load(text).teacher.options.weights == meant


def test_variables_in_paths(
    load: Load, problems: Problems, small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def root(text: str, env: dict[str, str]) -> Path:
        return load(small.replace('"runs"', f'"{text}"'), env=env).store.options.root

    cwd = tmp_path / "cwd"
    cwd.mkdir()
    monkeypatch.chdir(cwd)
    assert root("${R}/x", {"R": "/drive"}) == Path("/drive/x")
    assert root("a/${R}/${Q}", {"R": "r", "Q": "q"}) == tmp_path / "a" / "r" / "q"
    assert root("${R:-deflt}/x", {}) == tmp_path / "deflt" / "x"
    assert root("${R:-deflt}/x", {"R": ""}) == tmp_path / "deflt" / "x"
    assert root("${R}/x", {"R": "rel"}) == cwd / "rel" / "x"  # environments are written where one works
    monkeypatch.setenv("HOME", "/home/me")
    assert root("~/runs", {}) == Path("/home/me/runs")

    def problem(text: str, env: dict[str, str]) -> list[str]:
        answer: list[str] = problems(small.replace('"runs"', f'"{text}"'), env=env)
        return answer

    fix = "export R=..., or put R=... in .env, or write ${R:-a default}"
    assert problem("${R}/x", {}) == [f"store.root: the environment variable R is not set  → {fix}"]
    assert problem("${R}/x", {"R": ""}) == [f"store.root: the environment variable R is empty  → {fix}"]
    form = "write ${NAME} or ${NAME:-default}"
    assert problem("${R", {}) == [f"store.root: ${{ is not closed, or a variable's value holds another ${{  → {form}"]
    assert problem("${}", {}) == [f"store.root: ${{...}} does not hold a variable's name  → {form}"]
    assert problem("${R:-}", {}) == ["store.root: the path is empty  → name a file or folder"]


# extends


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_extends_merges_tables_and_replaces_arrays(plugins: Plugins, tmp_path: Path, whole: str) -> None:
    write(
        tmp_path,
        base__one=whole,
        base__two='extends = "one.toml"\n[run]\nname = "two"\nstages = ["storage", "train"]\n[train]\nbatch_size = 3\n',
        three='extends = "base/two.toml"\n[run]\nname = "three"\n[teacher]\nstop = []\nadapter = "mine"\n',
    )
    manifest = load_manifest(tmp_path / "three.toml", [], plugins, {})
    assert (manifest.run.name, manifest.run.seed, manifest.run.stages) == ("three", 7, ("storage", "train"))
    assert manifest.train == TrainConfig(steps=20, batch_size=3)
    assert manifest.teacher is not None
    assert (manifest.teacher.options.model, manifest.teacher.options.stop) == ("big-1", ())
    # each path starts at the file that wrote it
    assert manifest.teacher.options.adapter == tmp_path / "mine"
    assert manifest.store.options.root == tmp_path / "runs"
    assert manifest.baseline is not None
    assert Path(manifest.baseline.prompts) == tmp_path / "base" / "eval.jsonl"


def test_another_kind_replaces_the_whole_table(plugins: Plugins, tmp_path: Path, whole: str) -> None:
    write(tmp_path, one=whole, two='extends = "one.toml"\n[teacher]\nkind = "echo"\nwords = 5\n')
    manifest = load_manifest(tmp_path / "two.toml", [], plugins, {})
    assert manifest.teacher is not None
    assert (manifest.teacher.kind, manifest.teacher.options.words) == ("echo", 5)
    again = load_manifest(tmp_path / "one.toml", ["teacher.words=9", 'teacher.kind="echo"'], plugins, {})
    assert again.teacher is not None
    assert again.teacher.options.words == 9


def test_merge_by_hand() -> None:
    assert merge({"a": {"b": 1, "c": [1, 2]}, "d": 1}, {"a": {"c": [3]}, "d": {"e": 1}}) == {
        "a": {"b": 1, "c": [3]},
        "d": {"e": 1},
    }


@pytest.mark.parametrize(
    ("first", "problem"),
    [
        (
            'extends = "b.toml"',
            "DIR/a.toml: extends runs in a circle: a.toml → b.toml → a.toml  → remove one of these extends lines",
        ),
        ('extends = "bb.toml"', "DIR/bb.toml: no such file  → did you mean DIR/b.toml?"),
        (
            r'extends = "\u001b[2J\u2028/x.toml"',
            r"DIR/\x1b[2J\u2028/x.toml: no such file; there is no folder DIR/\x1b[2J\u2028"
            "  → name a manifest; `bitnet manifests ls` shows those that come with bitnet",
        ),
        (
            'extends = "sk-0123456789abcdef"',
            "DIR/a.toml: extends: this looks like an API key  → name a manifest, and put the key in .env",
        ),
        (
            'extends = ["b.toml"]',
            'DIR/a.toml: extends: expected one path in quotes, got an array  → write extends = "base.toml"',
        ),
        (
            'extends = "${BASE}"',
            "DIR/a.toml: extends: the environment variable BASE is not set  → export BASE=..., or put BASE=... in "
            ".env, or write ${BASE:-a default}",
        ),
        (
            'extends = "old.toml"',
            "DIR/old.toml: manifest_version: this bitnet reads version 1, the file says 0 (an integer)  → update "
            "bitnet-cli, or write manifest_version = 1",
        ),
    ],
)
def test_what_can_be_wrong_with_extends(plugins: Plugins, tmp_path: Path, first: str, problem: str) -> None:
    write(tmp_path, a=first, b='extends = "a.toml"', old="manifest_version = 0")
    with pytest.raises(UserError) as caught:
        load_manifest(tmp_path / "a.toml", [], plugins, {})
    assert str(caught.value).replace(str(tmp_path), "DIR") == problem


# --set


def test_set_lays_values_over_the_manifest(load: Load, whole: str) -> None:
    manifest = load(
        whole,
        ["train.steps=5", "train = {batch_size = 2}", 'run.name="x-y"', "teacher.stop=['a']"],
    )
    assert manifest.train == TrainConfig(steps=5, batch_size=2)
    assert manifest.run.name == "x-y"
    assert manifest.teacher.options.stop == ("a",)


def test_the_last_set_wins_and_one_may_add_a_section(load: Load, small: str) -> None:
    assert load(small, ["train.steps=5", "train.steps=6"]).train == TrainConfig(steps=6)


def test_paths_of_set_start_at_the_working_folder(
    load: Load, small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    assert load(small, ['store.root="here"']).store.options.root == tmp_path / "cwd" / "here"


def test_a_bare_word_is_a_string_where_the_key_takes_one(
    load: Load, small: str, whole: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problems: Problems
) -> None:
    monkeypatch.chdir(tmp_path)
    found = load(small, ["run.name=abc", "store.root=my runs/here"])
    assert found.run.name == "abc"
    assert found.store.options.root == tmp_path / "my runs/here"
    assert problems(whole, ["train.steps=many", "train.packing=True"]) == [
        'train.steps: expected an integer, got "many" (a string)',
        'train.packing: expected true or false, got "True" (a string)',
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("train.steps", "--set train.steps: expected KEY=VALUE  → write it like --set train.steps=200"),
        ("=3", "--set : expected KEY=VALUE  → write it like --set train.steps=200"),
        ("a..b=3", "--set a..b: expected KEY=VALUE  → write it like --set train.steps=200"),
        ("run.name=", """--set run.name: there is no value after =  → write --set 'run.name=""'"""),
        (
            "run.stages=[1",
            "--set run.stages: not a TOML value: Unclosed array  → write a number, true, an array or a string",
        ),
        ("a=1\nb=2", "--set a: expected one value  → give each key its own --set"),
        ("a.b=1,a.c=2", "--set a.b=1,a.c=2: expected one value  → give each key its own --set"),
        ('extends="x.toml"', "--set extends: can't be set  → write extends in the manifest"),
        (
            "a=" + "[" * 2000,
            "--set a: nested too deep, or an integer that does not fit in 64 bits  → write a smaller value",
        ),
        ('a="\udcff"', "--set a: not UTF-8  → type it in UTF-8"),
    ],
)
def test_a_wrong_set(problems: Problems, small: str, text: str, problem: str) -> None:
    assert problem in problems(small, [text])


def test_two_sets_that_exclude_each_other(problems: Problems, small: str) -> None:
    assert problems(small, ["train.steps=1", "train.steps.x=2"])[0] == (
        "--set train.steps.x: another --set makes train.steps a value, not a table  → drop one of the two"
    )


def test_the_quoted_value_that_is_advised_works() -> None:
    assert parse_override('run.name="abc"') == ("run.name", "abc")
    assert parse_override(" train.steps = 200 ") == ("train.steps", 200)
    assert parse_override('a.b="x=y"') == ("a.b", "x=y")


# Back into TOML


def test_the_resolved_manifest_loads_back_equal(
    load: Load, whole: str, plugins: Plugins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = load(whole, ['store.root="elsewhere"', "train.learning_rate=1"], env={"CACHES": "/c"})
    (tmp_path / "other").mkdir()
    file = tmp_path / "other" / "manifest.resolved.toml"
    file.write_text(resolved_toml(manifest), encoding="utf-8")
    monkeypatch.chdir(tmp_path / "other")
    assert load_manifest(file, [], plugins, {}) == manifest


def test_the_resolved_manifest_is_whole_and_has_no_secret(
    load: Load, whole: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOSTED_API_KEY", "very-secret-value")
    text = resolved_toml(load(whole, env=os.environ))
    assert "very-secret-value" not in text
    table = tomli.loads(text)
    assert list(table)[:3] == ["manifest_version", "run", "store"]
    assert table["teacher"]["kind"] == "hosted"
    assert table["teacher"]["api_key_env"] == "HOSTED_API_KEY"
    assert table["run"]["stages"] == list(WITHOUT_EXPORT)
    assert table["train"]["batch_size"] == TrainConfig().batch_size
    assert "budget_tokens" not in table["train"]


def test_a_small_manifest_resolves_to_its_own_sections(load: Load, small: str) -> None:
    assert set(tomli.loads(resolved_toml(load(small)))) == {"manifest_version", "run", "store"}


def test_unset_leaves_out_what_the_file_below_says(load: Load, whole: str, tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text(whole)
    base = load(whole)
    text = 'extends = "base.toml"\nmanifest_version = 1\nunset = ["train.steps", "evaluate", "loss"]\n'
    found = load(text + '[run]\nname = "other"\nstages = ["storage", "report"]\n[train]\nbatch_size = 3\n')
    assert base.train is not None
    assert found.train is not None
    assert (found.train.steps, found.train.batch_size) == (TrainConfig().steps, 3)
    assert base.train.steps != found.train.steps
    assert base.evaluate is not None
    assert (found.evaluate, found.loss) == (None, None)


@pytest.mark.parametrize(
    ("unset", "problem"),
    [
        ('["train.stepz"]', 'unset: what it extends has no "train.stepz"  → did you mean "train.steps"?'),
        ('["nothing.here.at.all"]', 'unset: what it extends has no "nothing.here.at.all"  → choose one of: '),
        ('"train"', "unset: expected an array of strings, got "),
    ],
)
def test_what_unset_can_not_leave_out(load: Load, whole: str, tmp_path: Path, unset: str, problem: str) -> None:
    (tmp_path / "base.toml").write_text(whole)
    with pytest.raises(UserError) as caught:
        load(f'extends = "base.toml"\nmanifest_version = 1\nunset = {unset}\n')
    assert problem in str(caught.value)
    with pytest.raises(UserError, match="unset: this file extends none"):
        load(f"unset = {unset}\n" + whole)


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("train.lr", "here it is train.learning_rate"),
        ("train.epochs", "train.steps counts batches: an epoch has documents / train.batch_size of them"),
        ("train.report_to", "here it is train.track"),
        ("train.seed", "here it is run.seed"),
        ("train.bf16", 'here it is train.precision = "bf16"'),
        ("train.per-device-train-batch-size", "here it is train.batch_size"),
        ("loss.temperature", "here it is loss.tau"),
        ("student.temperature", "here it is collect.temperature for answers, loss.tau for the loss"),
        ("run.output_dir", "here it is store.root and run.name"),
        ("train.warmup", 'did you mean "warmup_steps"?'),
    ],
)
def test_names_from_elsewhere_get_a_hint(whole: str, problems: Problems, key: str, hint: str) -> None:
    assert problems(whole, [f"{key}=1"]) == [f"{key}: unknown key  → {hint}"]


# Secrets


def test_a_password_in_a_url_is_refused_before_any_file_holds_it(load: Load, whole: str) -> None:
    for url in ("https://user:canary-12@host/v1", "https://canary-12@host/v1", "https://host/v1?api_key=canary-12"):
        for text, overrides in (
            (whole.replace('model = "big-1"', f'model = "{url}"'), []),
            (whole.replace('"END"]', f'"{url}"]'), []),
            (whole, [f'teacher.model="{url}"']),
        ):
            with pytest.raises(UserError, match="a URL with a password or a key in it") as error:
                load(text, overrides)
            assert "canary-12" not in str(error.value)
