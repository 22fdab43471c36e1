"""`.env`, SKIP_EXTERNAL and secrets by reference."""

import contextlib
import os
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitnet_cli.environment import env_file_option, export, load_environment, read_env_file, secret, skip_external
from bitnet_cli.errors import UserError


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_file_in_the_working_folder_is_read_where_there_is_one() -> None:
    assert load_environment(None, {"A": "1"}) == {"A": "1"}
    Path(".env").write_text("B=2\n# a comment\nexport C='three'\n")
    assert load_environment(None, {"A": "1"}) == {"A": "1", "B": "2", "C": "three"}


def test_what_is_already_set_wins() -> None:
    Path(".env").write_text("A=file\n")
    assert load_environment(None, {"A": "own"}) == {"A": "own"}


def test_a_named_file_replaces_the_default() -> None:
    Path(".env").write_text("A=1\n")
    Path("ci.env").write_text("B=2\n")
    assert load_environment(Path("ci.env"), {}) == {"B": "2"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "x.env: no such file  → write it (.env.example shows how), or drop --env-file"),
        (b"K=caf\xe9", "x.env: not UTF-8 (byte 5)  → save the file in UTF-8"),
        (
            b"A=1\nsk-secret and more\n",
            "x.env:2: not an assignment (not shown: it may be a secret)  → write NAME=value",
        ),
        (b"A='open\n", "x.env:1: not an assignment (not shown: it may be a secret)  → write NAME=value"),
        (b"A=b\0c\n", "x.env: holds a NUL character  → remove it"),
    ],
)
def test_a_wrong_file(data: bytes | None, message: str) -> None:
    if data is not None:
        Path("x.env").write_bytes(data)
    with pytest.raises(UserError) as caught:
        load_environment(Path("x.env"), {})
    assert str(caught.value) == message


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "ignore")))
def test_any_file_gives_variables_or_a_clean_error(data: bytes) -> None:
    Path("x.env").write_bytes(data)
    with contextlib.suppress(UserError):
        variables = read_env_file(Path("x.env"))
        assert all(isinstance(value, str) and "\0" not in value for value in variables.values())


def test_export_leaves_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITNET_TEST_A", "own")
    monkeypatch.setenv("BITNET_TEST_B", "")
    monkeypatch.delenv("BITNET_TEST_B")
    export({"BITNET_TEST_A": "file", "BITNET_TEST_B": "file"})
    assert (os.environ["BITNET_TEST_A"], os.environ["BITNET_TEST_B"]) == ("own", "file")


@pytest.mark.parametrize(("value", "meaning"), [("1", True), ("TRUE", True), (" yes", True), ("0", False), ("", False)])
def test_skip_external(value: str, meaning: bool) -> None:
    assert skip_external({"SKIP_EXTERNAL": value}) is meaning
    assert skip_external({}) is False


def test_skip_external_that_says_neither_is_an_error_not_a_no() -> None:
    with pytest.raises(UserError) as caught:
        skip_external({"SKIP_EXTERNAL": "maybe"})
    assert str(caught.value) == (
        "SKIP_EXTERNAL: expected 1 or 0  → write SKIP_EXTERNAL=1 to bar paid and remote calls, or unset it"
    )


def test_a_secret_by_reference() -> None:
    assert secret({"K": " value "}, "K", "teacher.api_key_env") == "value"
    for environment in ({}, {"K": " "}):
        with pytest.raises(UserError) as caught:
            secret(environment, "K", "teacher.api_key_env")
        assert str(caught.value) == (
            "teacher.api_key_env: the environment variable K is not set  → export K=..., or put it in .env"
        )


def test_the_option() -> None:
    @click.command()
    @env_file_option
    def command(env_file: Path | None) -> None:
        click.echo(repr(env_file))

    assert CliRunner().invoke(command, []).stdout == "None\n"
    assert "ci.env" in CliRunner().invoke(command, ["--env-file", "ci.env"]).stdout
