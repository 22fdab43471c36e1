"""Nothing that comes from elsewhere drives a terminal, or shows a password."""

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.progress import Progress

from bitnet_cli.main import Bitnet, cli
from bitnet_cli.reporter.events import Events
from bitnet_cli.reporter.failure_message import explain
from bitnet_cli.reporter.progress import Reporter
from bitnet_cli.reporter.terminal import PrintableStream, open_console
from bitnet_cli.wording.hide_secrets import has_password, plain_json, printable, without_passwords
from bitnet_core.errors import CoreError
from bitnet_providers.contract import ProviderError
from bitnet_storage.contract import StorageError

HOSTILE = "a\x1b]0;owned\x07b\x1b[2Jc\x9b31md\x7fe\rf\u202eg"
DRIVES = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
SECRET = "canary-1234"
URLS = (
    f"https://user:{SECRET}@host/v1",
    f"https://{SECRET}@host/v1",
    f"sftp://user:{SECRET}@host/runs",
    f"socks5://user:{SECRET}@127.0.0.1:1080",
    f"https://user:p@{SECRET}@host:1/v1",
    f"https://host/v1?api_key={SECRET}",
    f"https://host/v1?version=1&access_token={SECRET}&x=1",
    f"https://host/blob?sig={SECRET}",
    f"https://host/blob?X-Amz-Signature={SECRET}",
)


@given(st.text())
def test_what_is_printable_drives_nothing_and_is_as_long(text: str) -> None:
    shown = printable(text)
    assert not DRIVES.search(shown)
    assert shown.count("\n") == text.count("\n")
    if ":/" not in text:
        assert len(shown) == len(text)


@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8))
def test_json_is_exact_and_drives_nothing(value: Any) -> None:
    text = plain_json(value)
    assert not DRIVES.search(text)
    if ":/" not in text:
        assert json.loads(text) == value


@pytest.mark.parametrize("url", URLS)
def test_passwords_in_urls_are_masked_wherever_they_stand(url: str) -> None:
    for text in (url, f'can\'t reach "{url}": refused', f"{url} and {url}"):
        assert SECRET not in without_passwords(text)
        assert SECRET not in plain_json({"said": text})
        assert has_password(text)
    for harmless in ("http://127.0.0.1:8000/v1", "sftp://user@host/runs", "a@b.c", "https://host/a@b?page=1", "x: y@z"):
        assert without_passwords(harmless) == harmless


def test_a_long_text_is_masked_in_linear_time() -> None:
    """Each of these takes minutes where every beginning is followed to the end."""
    for odd in ("a://" * 100_000, "https://" + "a:" * 100_000, "https://h?" + "key" * 100_000, "a" * 300_000 + "://"):
        without_passwords(odd)


def test_errors_of_all_packages_are_printable() -> None:
    for kind in (CoreError, ProviderError, StorageError):
        assert not DRIVES.search(str(kind(HOSTILE, "try again")))


def test_whatever_a_command_prints_is_printable() -> None:
    @click.command(cls=click.Command)
    def says() -> None:
        click.echo(HOSTILE)
        click.echo(HOSTILE, err=True)
        click.echo(HOSTILE.encode())
        print(URLS[0])
        sys.stderr.writelines([URLS[0], "\n"])
        open_console().print(HOSTILE, style="red")
        raise click.UsageError(HOSTILE)

    group = Bitnet("group")
    group.add_command(says)
    before = sys.stdout
    done = CliRunner().invoke(group, ["says"], color=True)
    assert done.exit_code == 2
    assert sys.stdout is before
    shown = done.output.replace("\r", "")  # libraries' bars
    assert not DRIVES.search(shown)
    assert SECRET not in shown
    assert shown.count("owned") == 5


def test_what_is_wrong_in_an_argument_is_shown_without_what_it_drives() -> None:
    for arguments in (
        ["report", HOSTILE],
        ["run", URLS[0]],
        ["nowhere" + HOSTILE],
        ["plan", "m.toml", "--set", URLS[0]],
    ):
        done = CliRunner().invoke(cli, arguments)
        assert done.exit_code == 2
        assert not DRIVES.search(done.output.replace("\r", "")), arguments
        assert SECRET not in done.output


def test_colours_and_bars_of_our_own_pass() -> None:
    shown = io.StringIO()
    stream: Any = PrintableStream(shown)
    console = open_console(file=shown, force_terminal=True, width=60)
    console.print("red", style="red")
    assert "\x1b[31m" in shown.getvalue()
    with Progress(console=console, redirect_stdout=False) as progress:
        progress.add_task(HOSTILE, total=2)
    assert "\x1b]0;" not in shown.getvalue()
    assert "\x1b[2K" in shown.getvalue()
    stream.write("\r50%")
    assert shown.getvalue().endswith("\r50%")
    with pytest.raises(TypeError):
        stream.write(b"bytes")


def test_log_events_and_traceback_of_a_run(tmp_path: Path) -> None:
    shown, told = io.StringIO(), io.StringIO()
    reporter = Reporter(open_console(file=shown))
    reporter.keep_in(tmp_path / "run.log")
    reporter.stage_line("collect", f"{HOSTILE} {URLS[0]}")
    with reporter.stage("collect") as on_progress:
        on_progress(10, 10, HOSTILE)
    Events(told).emit("notice", text=f"{HOSTILE} {URLS[0]}")
    explain(RuntimeError(f"{HOSTILE} {URLS[0]}"), stage="collect", go_on="bitnet run m.toml", folder=tmp_path)
    for text in (
        shown.getvalue(), told.getvalue(), (tmp_path / "run.log").read_text(),
        (tmp_path / "logs/error.txt").read_text(),
    ):  # fmt: skip
        assert "owned" in text
        assert not DRIVES.search(text)
        assert SECRET not in text
