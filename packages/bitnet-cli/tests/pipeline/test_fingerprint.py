"""Fingerprints: the same in every process, sensitive to what counts and to nothing else."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_cli.pipeline.fingerprint import Identity, describe_changes, digest_files, digest_place, manifest_slice
from bitnet_cli.stages import baseline
from bitnet_core.config.student import StudentConfig
from bitnet_providers.config import BaselineConfig
from bitnet_providers.teachers.openai_compatible.options import OpenAIConfig

SETTINGS = st.dictionaries(
    st.text(min_size=1, max_size=8),
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8)),
    max_size=6,
)


def identity(**changes: Any) -> Identity:
    return Identity(**({"settings": {}, "files": {}, "formats": {}, "inputs": {}} | changes))


IN_A_PROCESS = """
from bitnet_cli.pipeline.fingerprint import Identity
settings = {"b": 1.5, "a": ["x", "é"]}
print(Identity(settings=settings, files={"f": "1"}, formats={"raw": 1}, inputs={"i": "2"}).fingerprint)
"""


def test_stable_across_processes() -> None:
    digests = {
        subprocess.run(
            [sys.executable, "-c", IN_A_PROCESS],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout.strip()
        for seed in ("1", "2")
    }
    here = Identity(
        inputs={"i": "2"}, settings={"a": ("x", "é"), "b": 1.5}, files={"f": "1"}, formats={"raw": 1}
    ).fingerprint
    assert digests == {here}


@given(SETTINGS, SETTINGS)
def test_equal_fingerprints_mean_nothing_changed(first: dict[str, Any], second: dict[str, Any]) -> None:
    before, after = identity(settings=first), identity(settings=second)
    same = before.fingerprint == after.fingerprint
    assert same == (describe_changes(before, after, {}) == "") or first == second  # 1 and 1.0 and True are equal


@pytest.mark.parametrize("part", ["settings", "files", "formats", "inputs"])
def test_every_part_counts(part: str) -> None:
    assert identity(**{part: {"x": 1}}).fingerprint != identity(**{part: {"x": 2}}).fingerprint


def test_changes_are_named() -> None:
    before = identity(
        settings={"train.steps": 200, "train.old": "x"}, files={"collect.prompts": "1"}, formats={"raw": 1},
        inputs={"raw/*": "1", "gone": "1"},
    )  # fmt: skip
    after = identity(
        settings={"train.steps": 300, "train.new": True}, files={"collect.prompts": "2"}, formats={"raw": 2},
        inputs={"raw/*": "2"},
    )  # fmt: skip
    assert describe_changes(before, after, {"raw/*": "collect"}, limit=99) == (
        'train.new is new (true), train.old is gone (was "x"), train.steps 200 → 300, '
        "what collect.prompts names has changed, file format raw 1 → 2, its input gone is gone, "
        "its input raw/* has changed (stage collect)"
    )
    assert describe_changes(before, after, {}, limit=2).endswith('(was "x") and 5 more')


@attrs.frozen
class Inner:
    ids: tuple[int, ...] = (1, 2)
    tokenizer: str = attrs.field(default="teacher", metadata={"path": True})


@attrs.frozen
class Tagged:
    kind: str
    options: Any


@attrs.frozen
class Outer:
    project: Inner = Inner()
    teacher: Tagged = Tagged("local", Inner())
    store: Path = Path("/somewhere")


def test_a_slice_is_flat_and_only_what_was_asked() -> None:
    settings, files = manifest_slice(Outer(), ("project", "teacher"), ignores=("teacher.ids",))
    assert settings == {
        "project.ids": [1, 2], "project.tokenizer": "teacher", "teacher.kind": "local", "teacher.tokenizer": "teacher"
    }  # fmt: skip
    assert files == {}
    assert manifest_slice(Outer(), ("project.tokenizer",)) == ({"project.tokenizer": "teacher"}, {})


def test_a_setting_that_was_added_later_counts_once_it_is_set() -> None:
    before = {f"student.{name}" for name in attrs.fields_dict(StudentConfig)} - {
        "student.architecture",
        "student.leave_out",
    }

    @attrs.frozen
    class Manifest:
        student: StudentConfig = attrs.field(factory=StudentConfig)

    assert set(manifest_slice(Manifest(), ("student",))[0]) == before
    other = StudentConfig(architecture="gpt2", leave_out=("*.c_proj",))
    settings, _ = manifest_slice(Manifest(other), ("student",))
    assert set(settings) - before == {"student.architecture", "student.leave_out"}
    assert (settings["student.architecture"], settings["student.leave_out"]) == ("gpt2", ["*.c_proj"])


def test_a_model_that_a_variable_names_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def named(**options: Any) -> Any:
        manifest = Outer(teacher=Tagged("openai", OpenAIConfig(**options)))
        return manifest_slice(manifest, ("teacher",))[0]["teacher.model"]

    monkeypatch.setenv("OPENAI_MODEL", "small")
    assert named() == "small"
    monkeypatch.setenv("OPENAI_MODEL", "large")  # else what "small" said would be taken as done
    assert named() == "large"
    assert named(model="own") == "own"
    monkeypatch.delenv("OPENAI_MODEL")
    assert named() == ""


def test_patience_makes_no_other_baseline() -> None:
    @attrs.frozen
    class Manifest:
        baseline: BaselineConfig = attrs.field(factory=lambda: BaselineConfig(prompts=Path("/p.txt")))
        teacher: Tagged = attrs.field(factory=lambda: Tagged("openai", OpenAIConfig()))

    def counted(manifest: Any) -> Any:
        return manifest_slice(manifest, ("baseline", "teacher"), baseline.STAGE.ignores)

    hurried = Manifest(
        BaselineConfig(prompts=Path("/p.txt"), retries=1, retry_wait_s=9.0),
        Tagged("openai", OpenAIConfig(timeout_s=9.0, connect_timeout_s=1.0, api_key_env="OTHER_KEY")),
    )
    assert counted(hurried) == counted(Manifest())  # what was paid for is not asked again
    assert counted(Manifest(BaselineConfig(prompts=Path("/p.txt"), max_new_tokens=9))) != counted(Manifest())


def test_paths_are_places_not_settings() -> None:
    manifest = Outer(project=Inner(tokenizer="/models/smol"))
    settings, files = manifest_slice(manifest, ("project", "store"))
    assert settings == {"project.ids": [1, 2]}
    assert files == {"project.tokenizer": Path("/models/smol"), "store": Path("/somewhere")}


def test_places_count_by_content(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        (folder / "deep").mkdir(parents=True)
        (folder / "deep" / "tokenizer.json").write_text("{}")
    assert digest_place(one) == digest_place(other)
    (other / "deep" / "tokenizer.json").write_text("[]")
    assert digest_place(one) != digest_place(other)
    assert digest_place(one / "deep" / "tokenizer.json") != digest_place(other / "deep" / "tokenizer.json")
    assert digest_place(tmp_path / "nowhere") == "missing"


def test_digests_of_outputs_count_names_and_contents(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("1")
    b.write_text("2")
    assert digest_files({"x": a, "y": b}) == digest_files({"y": b, "x": a})
    assert digest_files({"x": a, "y": b}) != digest_files({"x": b, "y": a})
    assert digest_files({"x": a}) != digest_files({"z": a})


def test_big_files_count_by_size_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitnet_cli.pipeline.fingerprint._WHOLE_FILE_BYTES", 3)
    weights = tmp_path / "model.gguf"
    weights.write_text("1234")
    os.utime(weights, ns=(0, 5))
    before = digest_place(weights), digest_place(tmp_path)
    weights.write_text("5678")
    os.utime(weights, ns=(0, 5))
    assert (digest_place(weights), digest_place(tmp_path)) == before
    os.utime(weights, ns=(0, 6))
    assert digest_place(weights) != before[0]
    assert digest_place(tmp_path) != before[1]
