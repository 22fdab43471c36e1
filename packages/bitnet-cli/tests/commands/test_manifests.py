"""`bitnet init` and `bitnet manifests`: what the package brings is what the repository has, and it loads."""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bitnet_cli.commands import manifests
from bitnet_cli.main import cli
from bitnet_cli.manifest import load_manifest
from bitnet_cli.plugins.load import load_plugins

ROOT = Path(__file__).parents[4]


def bitnet(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(each) for each in arguments])


def test_the_starter_is_the_repositorys_manifests_and_their_data() -> None:
    """A new manifest needs its link: ln -s ../../../../../../manifests/NAME.toml in starter/manifests."""
    repository = {f"manifests/{path.name}": path for path in (ROOT / "manifests").glob("*.*")}
    repository |= {f"manifests/data/{path.name}": path for path in (ROOT / "manifests/data").glob("*.jsonl")}
    repository |= {".env.example": ROOT / ".env.example", "manifests/data/README.md": ROOT / "manifests/data/README.md"}
    assert manifests.everything() == {name: path.read_bytes() for name, path in repository.items()}
    assert all((manifests.STARTER / name).is_symlink() for name in repository), "a copy would drift"


def test_init_writes_a_folder_whose_manifests_load(tmp_path: Path) -> None:
    done = bitnet("init", tmp_path / "mine")
    assert done.exit_code == 0, done.output
    assert f"next: bitnet run {tmp_path / 'mine/manifests/quickstart.toml'}" in done.output
    assert (tmp_path / "mine/.env.example").is_file()
    written = sorted((tmp_path / "mine/manifests").glob("*.toml"))
    assert [path.stem for path in written] == manifests.names()
    assert not any(path.is_symlink() for path in (tmp_path / "mine").rglob("*"))
    plugins = load_plugins(os.environ)
    for path in written:
        manifest = load_manifest(path, (), plugins, {})
        if manifest.collect is not None and manifest.collect.dataset is None:
            names_a_readers_file = path.stem == "own"
            assert Path(str(manifest.collect.prompts)).is_file() != names_a_readers_file


def test_init_again_changes_nothing_and_never_overwrites_unasked(tmp_path: Path) -> None:
    bitnet("init", tmp_path)
    assert f"{len(manifests.everything())} of" in bitnet("init", tmp_path).output
    (tmp_path / "manifests/ci.toml").write_text("mine")
    (tmp_path / "manifests/data/prompts.jsonl").unlink()
    refused = bitnet("init", tmp_path)
    assert refused.exit_code == 2
    assert f"{tmp_path / 'manifests/ci.toml'} is there already, with another content" in refused.output
    assert (tmp_path / "manifests/ci.toml").read_text() == "mine"
    assert not (tmp_path / "manifests/data/prompts.jsonl").exists(), "nothing was written"
    assert bitnet("init", tmp_path, "--force").exit_code == 0
    assert (tmp_path / "manifests/ci.toml").read_bytes() == (ROOT / "manifests/ci.toml").read_bytes()


def test_ls_says_what_each_is_for() -> None:
    found = json.loads(bitnet("manifests", "ls", "--json").output)["manifests"]
    assert [row["name"] for row in found] == manifests.names()
    assert all(len(row["summary"]) > 20 and not row["summary"].startswith("#") for row in found)
    lines = bitnet("manifests", "ls").output.splitlines()
    assert len(lines) == len(found)
    assert any(line.startswith("quickstart ") and "laptop" in line for line in lines)


def test_cp_brings_what_a_manifest_extends_and_reads(tmp_path: Path) -> None:
    assert bitnet("manifests", "cp", "ci.toml", tmp_path).exit_code == 0
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    data = [f"data/{name}.jsonl" for name in ("corpus", "eval_prompts", "json_prompts", "prompts", "test")]
    assert found == ["ci.toml", *data, "manifest.schema.json", "quickstart.toml"]


@pytest.mark.parametrize(("name", "fix"), [("quickstrt", 'did you mean "quickstart"?'), ("../x", "choose one of: ")])
def test_cp_of_an_unknown_name(tmp_path: Path, name: str, fix: str) -> None:
    refused = bitnet("manifests", "cp", name, tmp_path)
    assert refused.exit_code == 2
    assert f'there is no manifest "{name}"' in refused.output
    assert fix in refused.output


def test_a_folder_that_is_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    refused = bitnet("init", tmp_path / "x")
    assert refused.exit_code == 2
    assert "can't be written" in refused.output
