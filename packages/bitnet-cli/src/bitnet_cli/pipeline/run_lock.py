"""One run at a time in a run folder.

The lock is the operating system's: it goes with the process that holds it, so a killed run leaves nothing to clean up.
A note beside it says who holds it.
"""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from bitnet_cli import run_folder
from bitnet_cli.errors import UserError


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the folder's lock. Raises UserError, naming the holder, where another run has it."""
    path, note = folder / "stages" / ".lock", folder / "stages" / ".lock.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise _busy(folder, note) from error
    except NotImplementedError:  # a file system without locks: nothing to hold, and nothing that could tell
        yield
        return
    try:
        run_folder.write_json(
            note, {"pid": os.getpid(), "host": platform.node(), "since": datetime.now(UTC).isoformat("T", "seconds")}
        )
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.release()


def _busy(folder: Path, note: Path) -> UserError:
    holder = run_folder.read_json(note)
    who = ""
    if isinstance(holder, dict):
        who = f" (process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')})"
    return UserError(
        f"another run is at work in {folder}{who}",
        "wait for it or stop it; or use another folder with --set run.name='\"another\"'",
    )
