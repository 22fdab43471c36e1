"""llama.cpp's own server, in a process of its own: here, deleting it could wait for its loop for ever."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def running(model: Path, *, threads: int = 1, **params: Any) -> Iterator[str]:
    """``http://127.0.0.1:PORT`` of a server with `model`. `params`: its further CommonParams; threads -1: all cores."""
    process = subprocess.Popen(
        [sys.executable, "-P", __file__, str(model), str(threads), json.dumps(params)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    with process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url, f"llama.cpp does not start with {model}"
            yield url
        finally:
            process.kill()


def main() -> None:
    import xllamacpp

    told = os.dup(1)
    os.dup2(2, 1)
    params = xllamacpp.CommonParams()
    params.model.path, params.port, params.verbosity = sys.argv[1], 0, 0
    params.cpuparams.n_threads = int(sys.argv[2])
    for name, value in json.loads(sys.argv[3]).items():
        setattr(params, name, value)
    server = xllamacpp.Server(params)
    os.write(told, f"{server.listening_address}\n".encode())
    sys.stdin.read()  # until the tests are gone
    os._exit(0)


if __name__ == "__main__":
    main()
