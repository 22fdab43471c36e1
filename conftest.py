"""What holds for all tests: one thread for each of the two processes, and no test that is a matter of time."""

import os

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
