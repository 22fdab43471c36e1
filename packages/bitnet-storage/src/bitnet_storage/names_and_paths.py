"""Names of runs, each one folder's name on every file system, and paths that come from a listing or a snapshot: none of
them may lead out of the folder that they belong to.
"""

import re
from pathlib import Path, PurePosixPath

from bitnet_storage.contract import StorageError

OWN_FOLDER = ".bitnet-store"
"""In a working folder: what the store remembers and what is half pulled. Never pushed."""


def path_problem(path: str) -> str | None:
    """Why `path` can't be a file's place below a folder, or None where it can.

    It is relative, with ``/``; no part is empty, ``.`` or ``..``; it holds no backslash, drive letter or control
    character, so that it means the same everywhere.
    """
    if not path or path != str(PurePosixPath(path)) or path.startswith("/"):
        return "it is empty, absolute, or written in a roundabout way"
    if any(part in (".", "..") for part in path.split("/")):
        return "it leads out of its folder"
    if "\\" in path or any(ord(character) < 32 or ord(character) == 127 for character in path):
        return "it holds a backslash or a control character"
    if len(path) > 1 and path[1] == ":" and path[0].isalpha():
        return "it names a drive"
    try:
        too_long = any(len(part.encode()) > 255 for part in path.split("/"))
    except UnicodeEncodeError:
        return "it is no Unicode text"
    return "a part of it is longer than 255 bytes" if too_long else None


def checked_key(key: str) -> str:
    """The key of an object, if it is one. Raises StorageError."""
    problem = path_problem(key)
    if problem:
        raise StorageError(f"{key!a} can't be the key of an object: {problem}; what named it is damaged or not ours")
    return key


def inside(folder: Path, path: str) -> Path:
    """``folder/path``, where that is in `folder` also when links are followed. Raises StorageError."""
    problem = path_problem(path)
    if problem:
        raise StorageError(f"{path!a} can't be a path in {folder}: {problem}; what named it is damaged or not ours")
    target = folder / path
    if not target.parent.resolve().is_relative_to(folder.resolve()) or (
        target.is_symlink() and not target.resolve().is_relative_to(folder.resolve())
    ):
        raise StorageError(f"{target} would lie outside of {folder}: a link leads out of it", "remove the link")
    return target


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
        return f"{name} is a device's name on Windows"
    return None


def _shown(name: str) -> str:
    return ascii(name if len(name) <= 80 else name[:80] + "...")
