"""No test can hang for ever: not in C++ either, which keeps the interpreter, so that no Python code can end it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HANGING = """
import ctypes

def test_waits():
    c, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(64)  # PyDLL keeps the interpreter all the while
    c.pthread_mutex_init(mutex, None)
    c.pthread_mutex_lock(mutex)
    c.pthread_mutex_lock(mutex)  # no signal interrupts it, as one does sleep()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="it has no such mutex")
def test_a_wait_in_c_ends_the_run_and_says_where(tmp_path: Path) -> None:
    (tmp_path / "test_hanging.py").write_text(HANGING)
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider"]
    limits = ["-o", "timeout=1", "-o", "faulthandler_timeout=2"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [*command, *limits, str(tmp_path)], capture_output=True, text=True, check=False, env=environment, timeout=120
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Timeout (0:00:02)!" in done.stderr
    assert 'test_hanging.py", line 8 in test_waits' in done.stderr


def test_the_watchdog_is_later_than_the_time_out_that_lets_the_other_tests_run(pytestconfig: pytest.Config) -> None:
    assert float(pytestconfig.getini("faulthandler_timeout")) > float(pytestconfig.getini("timeout"))
