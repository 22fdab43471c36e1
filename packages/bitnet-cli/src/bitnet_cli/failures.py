"""What a person is told when a run stops: what failed, why, the fix, and how to go on."""

import errno
import traceback
from pathlib import Path

import attrs

from bitnet_cli import run_folder

EXIT_ERROR = 1
EXIT_USER = 2
EXIT_STOPPED = 130
"""128 + SIGINT, as shells have it."""

_FULL = (errno.ENOSPC, errno.EDQUOT)


@attrs.frozen
class Failure:
    """A message for people and the process's exit code."""

    message: str
    exit_code: int


def explain(error: BaseException, *, stage: str | None, go_on: str, folder: Path | None) -> Failure:
    """Turn what a stage raised into a message and an exit code.

    `stage` is None before the first one; `go_on` is the command that continues; `folder` is the run folder, where an
    unexpected error leaves its traceback (``logs/error.txt``).
    """
    error = _unwrap(error)
    where = f"stage {stage}" if stage else "the preparation"
    after = f"Finished stages are kept; go on with: {go_on}" if stage else f"Then run: {go_on}"
    if isinstance(error, KeyboardInterrupt):
        kept = f"stopped in {where}; finished stages are kept; go on with: {go_on}"
        if stage == "collect":
            kept += "\nWhat the teacher has said is kept, too: it is not asked for again."
        return Failure(kept, EXIT_STOPPED)
    if _is_user_error(error):
        return Failure(f"{where} failed: {error}\n{after}", EXIT_USER)
    if _is_disk_full(error):
        return Failure(
            f"{where} failed: the disk is full{_filename(error)}.\n"
            "Free some space, or point store.root at a bigger disk (the finished stages move with the folder).\n"
            + after,
            EXIT_USER,
        )
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return Failure(
            f"{where} failed: out of memory ({_one_line(error)}).\n"
            f"Lower the batch size or the sequence length of [{stage or 'train'}], or pick a smaller model.\n{after}",
            EXIT_USER,
        )
    report = _keep_traceback(error, folder)
    return Failure(
        f"{where} failed unexpectedly: {type(error).__name__}: {_one_line(error)}\n{report}\n{after}", EXIT_ERROR
    )


def _is_user_error(error: BaseException) -> bool:
    """Errors whose message already says what, where and the fix."""
    from bitnet_cli.errors import UserError
    from bitnet_core.errors import CoreError
    from bitnet_providers.contract import ProviderError
    from bitnet_storage.contract import StorageError

    return isinstance(error, UserError | ProviderError | StorageError | CoreError)


def _unwrap(error: BaseException) -> BaseException:
    """The one error that matters out of an asyncio task group's bundle: a stop first, then a user error."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    leaves = [_unwrap(inner) for inner in error.exceptions]
    for wanted in (lambda e: isinstance(e, KeyboardInterrupt), _is_user_error, _is_disk_full):
        for leaf in leaves:
            if wanted(leaf):
                return leaf
    return leaves[0]


def _is_disk_full(error: BaseException) -> bool:
    """Also where a library (safetensors, pyarrow) wraps the operating system's error in its own."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _FULL:
            return True
        if "No space left on device" in str(seen) or "StorageFull" in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _filename(error: BaseException) -> str:
    name = getattr(error, "filename", None)
    return f" (writing {name})" if name else ""


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:297] + "..."


def _keep_traceback(error: BaseException, folder: Path | None) -> str:
    text = "".join(traceback.format_exception(error))
    if folder is not None:
        path = folder / "logs" / "error.txt"
        try:
            run_folder.write_text(path, text)
        except OSError:
            return text
        return f"This looks like a defect of the tool; the traceback is in {path}: please report it."
    return f"This looks like a defect of the tool; please report it with this traceback:\n{text}"
