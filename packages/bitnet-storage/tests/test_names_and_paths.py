import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_storage.names_and_paths import run_name_problem


@pytest.mark.parametrize("name", ["a", "quickstart", "2026-11-22_run.1", "A" * 64, "console", "a-", "nul1"])
def test_names_of_folders_are_taken(name: str) -> None:
    assert run_name_problem(name) is None


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../up",
        "a/b",
        "a\\b",
        "/abs",
        "C:",
        ".hidden",
        "-rf",
        "a b",
        "a\n",
        "a\0",
        "ü",
        "A" * 65,
        "a.",
        "٣",
    ],
)
def test_what_is_not_one_folders_name_is_refused(name: str) -> None:
    assert "a run's name is one folder's name" in (run_name_problem(name) or "")


def test_the_message_says_the_rule_and_what_was_given() -> None:
    assert run_name_problem("../up") == (
        "a run's name is one folder's name: 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit "
        "and not ending with a dot; got '../up'"
    )


@pytest.mark.parametrize("name", ["CON", "nul", "com1", "lpt9.txt"])
def test_device_names_of_windows_are_refused(name: str) -> None:
    assert run_name_problem(name) == f"{name} is a device's name on Windows"


@given(st.text())
def test_no_accepted_name_leads_anywhere_else(name: str) -> None:
    if run_name_problem(name) is None:
        assert not set(name) & set("/\\:\0\n ")
        assert name not in (".", "..")
