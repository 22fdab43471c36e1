"""What holds for all tests: one thread for each of the two processes, and no test that is a matter of time."""

import gc
import os
import sys

import pytest

# Containers set it. Each process of the tests would then compile thousands of modules that one compiles for all.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
gc.disable()  # until all is imported
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch and llama.cpp are imported
try:
    from hypothesis import HealthCheck, settings
except ImportError:  # bitnet-storage's own environment may lack it
    pass
else:
    settings.register_profile(
        "tests",
        deadline=None,  # a busy machine may take its time
        suppress_health_check=[HealthCheck.too_slow],
        derandomize="CI" in os.environ,  # one commit, one result
    )
    settings.load_profile("tests")


def pytest_collection_finish(session: pytest.Session) -> None:
    """What has been imported by now stays: millions of objects that no garbage collection need look at again."""
    gc.freeze()
    gc.enable()


def pytest_sessionfinish(session: pytest.Session) -> None:
    gc.unfreeze()
