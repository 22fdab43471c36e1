"""Broken plugins as real installed distributions: each is shown with its fix, and none breaks the others."""

import io
import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bitnet_cli.commands.plugins import capabilities_words, plugins_command, show_plugins
from bitnet_cli.errors import UserError
from bitnet_cli.plugins.catalog import Plugins, Row
from bitnet_cli.plugins.load import load_plugins
from bitnet_cli.reporter.terminal import open_console

GOOD = """
import attrs
from bitnet_storage.contract import StorePlugin
from bitnet_storage.hookspecs import hookimpl

@attrs.frozen
class Options:
    root: str = "here"

def record(**changes):
    return StorePlugin(**{"name": "good", "options": Options, "open": print, "summary": "a good store", **changes})

@hookimpl
def bitnet_stores():
    return [record()]
"""

TEACHER = """
import attrs
from bitnet_providers.contract import Capabilities, TeacherPlugin
from bitnet_providers.hookspecs import hookimpl

@attrs.frozen
class Options:
    words: int = 3

CAPABILITIES = Capabilities(max_top_logprobs=20, token_ids=False, token_bytes=True, scoring=False, external=True)

@hookimpl
def bitnet_teachers():
    return [TeacherPlugin(name="echo", options=Options, capabilities=CAPABILITIES, open=print, summary="says it again")]
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a distribution of one module with one entry point, in a folder that is on sys.path."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def install(distribution: str, code: str, *, version: str = "1.0", target: str = "") -> None:
        module = distribution.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(code))
        info = tmp_path / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[bitnet]\n{module}_ep = {target or module}\n")

    yield install
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def rows_of(plugins: Plugins, distribution: str) -> list[Row]:
    return [row for row in plugins.all if row.distribution == distribution]


def row_of(distribution: str, environment: dict[str, str] | None = None) -> Row:
    (row,) = rows_of(load_plugins(environment or {}), distribution)
    return row


def changed(expression: str) -> str:
    return GOOD.replace("return [record()]", f"return {expression}")


def test_a_good_plugin_is_listed_and_found(install: Install) -> None:
    install("store-good", GOOD, version="2.3")
    plugins = load_plugins({})
    assert rows_of(plugins, "store-good") == [
        Row(name="good", kind="store", distribution="store-good", version="2.3", status="ok", summary="a good store")
    ]
    assert plugins.stores["good"] is plugins.require_store("good")


def test_a_teacher_shows_its_capabilities(install: Install) -> None:
    install("teacher-echo", TEACHER)
    assert row_of("teacher-echo").capabilities == {
        "max_top_logprobs": 20,
        "token_ids": False,
        "token_bytes": True,
        "scoring": False,
        "chat": True,
        "external": True,
        "logprobs_before_temperature": True,
        "paced": True,
        "whole_distribution": False,
        "top_p": True,
        "seed": True,
    }


def test_one_package_may_bring_several_kinds(install: Install) -> None:
    install("both-kinds", GOOD + TEACHER.replace("Options", "TeacherOptions"))
    assert {(row.kind, row.name) for row in rows_of(load_plugins({}), "both-kinds")} == {
        ("store", "good"),
        ("teacher", "echo"),
    }


def test_built_ins_come_through_the_same_entry_points() -> None:
    plugins = load_plugins({})
    (local,) = [row for row in plugins.all if (row.kind, row.name) == ("store", "local")]
    assert (local.distribution, local.status) == ("bitnet-storage", "ok")
    assert load_plugins({"BITNET_DISABLE_PLUGINS": "bitnet-storage"}).stores == {}


OFF = "BITNET_DISABLE_PLUGINS={}_ep leaves it out meanwhile"

BROKEN: dict[str, tuple[str, str, str, str]] = {
    "import-error": (
        "import surely_missing_module",
        "import failed",
        "ModuleNotFoundError: No module named 'surely_missing_module' (import_error.py:1)",
        "install surely_missing_module, which it imports, or repair it with pip install --force-reinstall import-error",
    ),
    "import-raises": (
        "x = 1\nraise RuntimeError('no\\nway')",
        "import failed",
        "RuntimeError: no way (import_raises.py:2)",
        "pip install --force-reinstall import-raises",
    ),
    "import-exits": (
        "import sys\nsys.exit('bye')",
        "import failed",
        "SystemExit: bye (import_exits.py:2)",
        "pip install --force-reinstall import-exits",
    ),
    "syntax-error": (
        "def (",
        "import failed",
        "SyntaxError: invalid syntax (syntax_error.py, line 1)",
        "pip install --force-reinstall syntax-error",
    ),
    "wrong-signature": (
        GOOD.replace("bitnet_stores()", "bitnet_stores(y, x)"),
        "incompatible",
        "wrong hook signature: bitnet_stores has no argument x, y",
        "tell the author of wrong-signature",
    ),
    "unknown-hook": (
        GOOD.replace("bitnet_stores()", "bitnet_storez()"),
        "incompatible",
        "unknown hook 'bitnet_storez'; bitnet has bitnet_teachers, bitnet_stores, bitnet_losses, bitnet_exporters, "
        "bitnet_benchmarks, bitnet_launchers",
        "tell the author of unknown-hook",
    ),
    "no-hook": (
        "x = 1",
        "incompatible",
        "'no_hook' has no hook of bitnet (bitnet_teachers, bitnet_stores, bitnet_losses, bitnet_exporters, "
        "bitnet_benchmarks, bitnet_launchers)",
        "mark its function with @hookimpl, or tell the author of no-hook",
    ),
    "hook-raises": (
        GOOD.replace("return [record()]", "raise OSError('no disk')"),
        "incompatible",
        "bitnet_stores raised OSError: no disk (hook_raises.py:15)",
        "tell the author of hook-raises",
    ),
    "lazy-raises": (
        changed("(1 / 0 for _ in 'x')"),
        "incompatible",
        "bitnet_stores raised ZeroDivisionError: division by zero (lazy_raises.py:15)",
        "tell the author of lazy-raises",
    ),
    "returns-none": (
        changed("None"),
        "incompatible",
        "bitnet_stores returned None, not a list of StorePlugin",
        "tell the author of returns-none",
    ),
    "wrong-type": (
        changed("[{'name': 'good'}]"),
        "incompatible",
        "bitnet_stores returned a dict, not a StorePlugin",
        "tell the author of wrong-type",
    ),
    "bare-record": (
        changed("record()"),
        "incompatible",
        "bitnet_stores raised TypeError: 'StorePlugin' object is not iterable",
        "tell the author of bare-record",
    ),
    "too-new": (
        changed("[record(api_version=2)]"),
        "incompatible",
        "made for version 2 of bitnet-storage's plugin API; the one installed has 1",
        "pip install --upgrade bitnet-storage",
    ),
    "bad-name": (
        changed("[record(name='a b')]"),
        "incompatible",
        "StorePlugin.name must be a short word of letters, digits, '_', '.', '-'",
        "tell the author of bad-name",
    ),
    "bad-options": (
        changed("[record(options=dict)]"),
        "incompatible",
        "StorePlugin.options of 'good' must be an attrs class",
        "tell the author of bad-options",
    ),
    "kind-field": (
        changed("[record(options=attrs.make_class('Mine', ['kind']))]"),
        "incompatible",
        "Mine has a field 'kind', which the manifest uses to choose the plugin",
        "tell the author of kind-field",
    ),
    "bad-open": (
        changed("[record(open=None)]"),
        "incompatible",
        "StorePlugin.open of 'good' can't be called",
        "tell the author of bad-open",
    ),
    "missing-one": (
        changed("[record(requires=('surely_missing_sdk',), install=\"pip install 'missing-one[sdk]'\")]"),
        "missing extra",
        "needs surely_missing_sdk, which is not installed",
        "pip install 'missing-one[sdk]'",
    ),
    "missing-two": (
        changed("[record(requires=('json', 'no_a', 'no_b.c'))]"),
        "missing extra",
        "needs no_a, no_b.c, which are not installed",
        "pip install no_a no_b.c",
    ),
}


@pytest.mark.parametrize("distribution", BROKEN)
def test_a_broken_plugin_is_shown_with_its_fix(install: Install, distribution: str) -> None:
    code, status, problem, fix = BROKEN[distribution]
    install(distribution, code)
    row = row_of(distribution)
    off = f"; {OFF.format(distribution.replace('-', '_'))}" if status != "missing extra" else ""
    assert (row.status, row.problem, row.fix) == (status, problem, fix + off)


def test_the_place_is_the_plugins_own_whatever_it_calls(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(reason: str) -> None:
        raise SystemExit(reason)

    monkeypatch.setattr(sys, "exit", leave)  # as wandb does for as long as the process lives
    install("import-exits", BROKEN["import-exits"][0])
    assert row_of("import-exits").problem == "SystemExit: bye (import_exits.py:2)"


def test_all_of_them_together_break_nothing(install: Install) -> None:
    for distribution, (code, *_) in BROKEN.items():
        install(distribution, code)
    install("store-good", GOOD.replace('"good"', '"fine"'))
    plugins = load_plugins({})
    assert plugins.require_store("fine").summary == "a good store"
    assert plugins.require_store("local").name == "local"
    assert {row.distribution for row in plugins.all} >= {*BROKEN, "store-good", "bitnet-storage"}
    shown = io.StringIO()
    show_plugins(plugins, open_console(file=shown))
    table = shown.getvalue()
    for distribution in BROKEN:
        assert distribution in table
    assert re.search(r"^stores\n(  .*\n)*  fine +a good store \[store-good 1.0\]", table, re.MULTILINE)


def test_a_teacher_says_what_it_gives_and_what_nobody_knows() -> None:
    rows = {row.name: capabilities_words(row) for row in load_plugins({}).all if row.kind == "teacher"}
    assert rows["local"] == "top 1024, ids, scoring, local; its settings decide"
    assert rows["anthropic"] == "no top-logprobs, external, no seed"
    assert rows["openai"] == "top 20, bytes, external, before temperature: unknown; its settings decide"


def test_the_list_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = CliRunner().invoke(plugins_command).output.splitlines()
    assert [line for line in lines if line and not line.startswith(" ")] == [
        "launchers", "losses", "exporters", "benchmarks", "teachers", "stores",
    ]  # fmt: skip
    assert max(map(len, lines)) <= 80


def test_a_malformed_entry_points_file_is_passed_over(install: Install, tmp_path: Path) -> None:
    install("store-good", GOOD)
    install("malformed", GOOD)
    (tmp_path / "malformed-1.0.dist-info" / "entry_points.txt").write_bytes(b"[bitnet]\nno equals sign\n\xff\n")
    plugins = load_plugins({})
    assert "good" in plugins.stores
    assert rows_of(plugins, "malformed") == []


def test_an_entry_point_at_a_missing_attribute(install: Install) -> None:
    install("missing-attribute", GOOD, target="missing_attribute:plugin")
    row = row_of("missing-attribute")
    assert row.status == "import failed"
    assert row.problem == "AttributeError: module 'missing_attribute' has no attribute 'plugin'"


def test_of_two_with_one_name_the_first_counts(install: Install) -> None:
    install("b-store", GOOD.replace("a good store", "from b"))
    install("a-store", GOOD.replace("a good store", "from a"))
    plugins = load_plugins({})
    assert plugins.stores["good"].summary == "from a"
    (row,) = rows_of(plugins, "b-store")
    assert row.status == "duplicate"
    assert row.problem == "a-store brings a store of this name too, and that one counts"
    assert row.fix == "uninstall one of the two, or leave a-store's out with BITNET_DISABLE_PLUGINS=a-store"
    other = load_plugins({"BITNET_DISABLE_PLUGINS": "a-store"})
    assert other.stores["good"].summary == "from b"
    assert [row.status for row in rows_of(other, "b-store")] == ["ok"]


def test_nobody_takes_a_built_ins_place(install: Install) -> None:
    install("aaa-store", changed("[record(name='local')]"))
    plugins = load_plugins({})
    assert plugins.stores["local"].summary == "folders of this machine or of a mounted drive"
    assert row_of("aaa-store").status == "duplicate"


@pytest.mark.parametrize("named", ["store-good", "store_good_ep", "good", "store:good", " x , good "])
def test_plugins_can_be_disabled(install: Install, named: str) -> None:
    install("store-good", GOOD)
    plugins = load_plugins({"BITNET_DISABLE_PLUGINS": named})
    (row,) = rows_of(plugins, "store-good")
    assert row.status == "disabled"
    assert row.fix == "take it out of BITNET_DISABLE_PLUGINS"
    assert "good" not in plugins.stores
    assert "local" in plugins.stores


def test_a_disabled_package_is_not_imported(install: Install) -> None:
    install("import-exits", "raise SystemExit('imported')")
    assert row_of("import-exits", {"BITNET_DISABLE_PLUGINS": "import-exits"}).status == "disabled"
    assert "import_exits" not in sys.modules


def test_a_name_to_disable_that_nothing_goes_by_is_said() -> None:
    assert load_plugins({"BITNET_DISABLE_PLUGINS": "goood,bitnet-storage"}).warnings == (
        "BITNET_DISABLE_PLUGINS names 'goood', but no plugin, entry point or distribution goes by that name",
    )


def test_an_unknown_name_gets_a_suggestion_and_the_list(install: Install) -> None:
    install("teacher-echo", TEACHER)
    plugins = load_plugins({"BITNET_DISABLE_PLUGINS": "bitnet-providers"})
    with pytest.raises(UserError) as caught:
        plugins.require_teacher("ecco")
    assert str(caught.value) == (
        "there is no teacher plugin 'ecco'; did you mean 'echo'? installed: echo"
        "  → install the package that brings it with pip install; `bitnet plugins` shows what is there"
    )
    with pytest.raises(UserError, match=r"^there is no loss plugin 'zzz'; installed: "):
        plugins.require_loss("zzz")


def test_a_missing_extra_is_said_when_it_is_needed_not_before(install: Install) -> None:
    install("missing-one", BROKEN["missing-one"][0])
    plugins = load_plugins({})
    assert plugins.stores["good"].options.__name__ == "Options"  # so that a manifest naming it can be planned
    with pytest.raises(UserError) as caught:
        plugins.require_store("good")
    assert str(caught.value) == (
        "the store plugin 'good' can't be used: missing extra: needs surely_missing_sdk, which is not installed"
        "  → pip install 'missing-one[sdk]'"
    )


def test_asking_for_a_plugin_that_is_there_but_broken_says_why(install: Install) -> None:
    install("too-new", BROKEN["too-new"][0])
    with pytest.raises(UserError, match=r"^the store plugin 'good' can't be used: incompatible: made for version 2"):
        load_plugins({}).require_store("good")


def test_the_command_prints_a_table_and_json(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("teacher-echo", TEACHER)
    install("too-new", BROKEN["too-new"][0])
    monkeypatch.setenv("BITNET_DISABLE_PLUGINS", "goood")
    monkeypatch.setenv("COLUMNS", "200")  # nothing wraps
    table = CliRunner().invoke(plugins_command, [], catch_exceptions=False)
    assert table.exit_code == 0
    assert "top 20, bytes, external" in " ".join(table.stdout.split())
    assert "good (too-new): incompatible: made for version 2 of bitnet-storage's plugin API" in table.stdout
    assert (
        "  fix: pip install --upgrade bitnet-storage; BITNET_DISABLE_PLUGINS=too_new_ep leaves it out" in table.stdout
    )
    assert "warning: BITNET_DISABLE_PLUGINS names 'goood'" in table.stdout

    answer: dict[str, Any] = json.loads(CliRunner().invoke(plugins_command, ["--json"], catch_exceptions=False).stdout)
    (echo,) = [row for row in answer["plugins"] if row["name"] == "echo"]
    assert echo["capabilities"]["max_top_logprobs"] == 20
    assert set(echo) == {
        "name", "kind", "distribution", "version", "status", "problem", "fix", "capabilities", "summary", "by_settings",
    }  # fmt: skip
    assert len(answer["warnings"]) == 1


def test_listing_loads_nothing_heavy() -> None:
    code = (
        "import sys; from bitnet_cli.plugins.load import load_plugins; load_plugins();"
        "print([m for m in ('torch', 'transformers', 'pyarrow', 'rich', 'cattrs') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
