"""Each of the two test processes computes with one thread: more would wait for each other."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch and llama.cpp are imported
if os.environ.get("CI"):
    try:
        from hypothesis import settings
    except ImportError:  # bitnet-storage's own environment may lack it
        pass
    else:
        settings.register_profile("ci", derandomize=True)  # one commit, one result
        settings.load_profile("ci")
