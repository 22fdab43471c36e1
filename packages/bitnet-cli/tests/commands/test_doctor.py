"""`bitnet doctor`: what it finds, what it never shows, and its exit code."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from bitnet_cli.commands import doctor
from bitnet_cli.main import cli
from bitnet_cli.plugins.catalog import Row
from bitnet_cli.plugins.load import load_plugins

MANIFEST = """
manifest_version = 1
[run]
name = "tiny"
stages = ["storage"]
[store]
kind = "s3"
bucket = "no-such"
endpoint = "http://127.0.0.1:9"
access_key_env = "DOCTOR_KEY"
secret_key_env = "DOCTOR_SECRET"
work = "work"
"""
LOCAL = """
manifest_version = 1
[run]
name = "tiny"
stages = ["storage"]
[store]
kind = "local"
root = "runs"
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def bitnet(*arguments: object, **environment: str | None) -> Result:
    return CliRunner().invoke(cli, [str(each) for each in arguments], env=environment)


def findings(result: Result, check: str) -> list[dict[str, Any]]:
    return [each for each in json.loads(result.output)["findings"] if each["check"] == check]


def test_a_sound_installation() -> None:
    result = bitnet("doctor", "--json")
    assert result.exit_code == 0, result.output
    assert [each["status"] for each in findings(result, "versions")] == ["ok"]
    assert findings(result, "device")[0]["said"].startswith("torch ")
    assert findings(result, "disk")
    assert "a run can start" in bitnet("doctor").output


def test_a_local_store_is_written_and_nothing_is_left(tmp_path: Path) -> None:
    Path("m.toml").write_text(LOCAL)
    result = bitnet("doctor", "m.toml", "--json")
    assert result.exit_code == 0, result.output
    assert f"{tmp_path / 'runs'} can be written" in findings(result, "store")[0]["said"]
    assert sorted(os.listdir(tmp_path)) == ["m.toml"]


def test_a_durable_store_is_reached_and_its_lease_given_back(tmp_path: Path) -> None:
    Path("m.toml").write_text(LOCAL + 'work = "work"\n')
    result = bitnet("doctor", "m.toml", "--json")
    assert result.exit_code == 0, result.output
    assert "is reached and can be written; runs: 0" in findings(result, "store")[0]["said"]
    assert [path for path in (tmp_path / "runs").rglob("*") if path.is_file()] == []


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    Path("runs").write_text("a file")
    Path("m.toml").write_text(LOCAL + 'work = "work"\n')
    result = bitnet("doctor", "m.toml")
    assert result.exit_code == 2
    assert "✗ store" in result.output
    assert "is a file, not a folder" in result.output


def test_keys_are_told_as_set_or_not_and_never_shown() -> None:
    Path("m.toml").write_text(MANIFEST)
    result = bitnet("doctor", "m.toml", "--json", DOCTOR_KEY="obviously-fake-value", DOCTOR_SECRET=None)
    assert result.exit_code == 2
    assert "obviously-fake-value" not in result.output
    key, secret = findings(result, "keys")
    assert (key["status"], key["said"]) == ("ok", "store.access_key_env: DOCTOR_KEY is set")
    assert (secret["status"], secret["said"]) == ("problem", "store.secret_key_env: DOCTOR_SECRET is not set")
    assert secret["fix"] == "export DOCTOR_SECRET=..., or put it in .env"
    assert findings(result, "store")[0]["status"] == "problem"


def test_in_colab_the_fix_is_a_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitnet_storage.backends.mounted_folder.in_colab", lambda: True)
    Path("m.toml").write_text(MANIFEST)
    key, _ = findings(bitnet("doctor", "m.toml", "--json", DOCTOR_KEY=None, DOCTOR_SECRET="fake"), "keys")
    assert key["fix"].endswith("os.environ['DOCTOR_KEY'] = userdata.get('DOCTOR_KEY')")


@pytest.mark.parametrize(("skip", "status"), [("0", "problem"), ("1", "note")])
def test_a_teacher_that_may_not_be_asked_needs_no_key(skip: str, status: str) -> None:
    Path("m.toml").write_text(LOCAL + '[teacher]\nkind = "openai"\nmodel = "m"\napi_key_env = "DOCTOR_KEY"\n')
    result = bitnet("doctor", "m.toml", "--json", DOCTOR_KEY=None, SKIP_EXTERNAL=skip)
    assert findings(result, "keys")[0]["status"] == status
    assert result.exit_code == (2 if status == "problem" else 0)


def test_a_manifest_with_mistakes_is_a_finding() -> None:
    Path("m.toml").write_text(LOCAL + "rooot = 1\n")
    result = bitnet("doctor", "m.toml")
    assert result.exit_code == 2
    assert "✗ manifest" in result.output
    assert 'did you mean "root"?' in result.output


def test_settings_are_changed_as_in_a_run() -> None:
    Path("m.toml").write_text(LOCAL)
    result = bitnet("doctor", "m.toml", "--set", 'store.root="elsewhere"', "--json")
    assert result.exit_code == 0, result.output
    assert "elsewhere can be written" in findings(result, "store")[0]["said"]
    assert "elsewhere can be written" in bitnet("doctor", "m.toml", "--set", "store.root=elsewhere").output
    assert "--set store.root: there is no value" in bitnet("doctor", "m.toml", "--set", "store.root=").output


def test_what_plan_finds_is_found() -> None:
    Path("m.toml").write_text(
        LOCAL.replace('["storage"]', '["storage", "baseline"]')
        + '[teacher]\nkind = "local"\nmodel = "nowhere"\n[baseline]\nprompts = "p.txt"\n'
    )
    Path("p.txt").write_text("Hello?\n")
    result = bitnet("doctor", "m.toml", "--json")
    assert result.exit_code == 2
    assert "neither a folder nor a .gguf file" in findings(result, "plan")[0]["said"]


@pytest.mark.parametrize(
    ("found", "status"),
    [
        ({"bitnet-cli": "1", "bitnet-core": "1"}, "ok"),
        ({"bitnet-cli": "1", "bitnet-core": "2"}, "problem"),
        ({"bitnet-cli": "1", "bitnet-core": None}, "problem"),
    ],
)
def test_versions(found: dict[str, str | None], status: str) -> None:
    assert doctor.versions(found).status == status


def test_a_broken_torch_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    finding = doctor.device()
    assert finding.status == "problem"
    assert "torch can't be imported" in finding.said


def test_little_disk_is_noted() -> None:
    assert doctor.disk("disk", 10**12, "here").status == "ok"
    finding = doctor.disk("disk", 10**8, "here")
    assert (finding.status, finding.said) == ("note", "0.1 GB free here")


def test_a_broken_plugin_is_noted_with_its_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    import attrs

    row = Row(name="odd", kind="", distribution="odd-one", version="1", status="import failed", problem="x", fix="mend")
    lacking = attrs.evolve(row, name="big", status="missing extra")
    plugins = attrs.evolve(load_plugins({}), all=(*load_plugins({}).all, row, lacking))
    first, second = doctor.plugin_findings(plugins)
    assert first.status == "ok"
    assert "not installed: " in first.said
    assert "big" in first.said
    assert (second.status, second.said, second.fix) == ("note", "odd (odd-one): import failed: x", "mend")


def test_a_finding_and_its_fix_are_printed() -> None:
    lines: list[str] = []
    echo: Callable[[str], None] = lines.append
    doctor.shown(doctor.Finding("keys", "problem", "K is not set", "export K"), echo)
    assert lines == ["✗ keys      K is not set", "            → export K"]
