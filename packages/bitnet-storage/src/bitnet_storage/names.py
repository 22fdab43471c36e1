"""Names of runs: each is one folder's name, on every file system."""

import re

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)  # Windows devices


def run_name_problem(name: str) -> str | None:
    """Why `name` can't name a run's folder, or None where it can.

    A name has 1 to 64 of A-Z, a-z, 0-9, ``.``, ``_``, ``-`` and starts with a letter or digit: so it is never a path,
    never hidden, and the same on Linux, macOS, Windows, Google Drive and S3.
    """
    if not _NAME.fullmatch(name) or name.endswith("."):
        return (
            "a run's name is one folder's name: 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or "
            f"digit and not ending with a dot; got {_shown(name)}"
        )
    if _RESERVED.fullmatch(name):
        return f"{name} is a device's name on Windows; choose another name"
    return None


def _shown(name: str) -> str:
    return ascii(name if len(name) <= 80 else name[:80] + "...")
