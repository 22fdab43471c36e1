"""The message of a run that stops: what failed, why, the fix, and how to go on."""

import errno
import traceback
from pathlib import Path

import attrs

from bitnet_cli import run_folder
from bitnet_cli.errors import EXIT_ERROR, EXIT_STOPPED, EXIT_USER, UserError, problem_of
from bitnet_cli.wording.hide_secrets import printable

_FULL = (errno.ENOSPC, errno.EDQUOT)


@attrs.frozen(kw_only=True)
class Failure:
    """A message for people, its parts for programs, and the process's exit code."""

    message: str
    exit_code: int
    what: str
    why: str = ""
    fix: str = ""
    """What to do about it; empty where nothing is known to help."""
    go_on: str
    """The command that continues."""


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
        return Failure(message=kept, exit_code=EXIT_STOPPED, what=f"stopped in {where}", go_on=go_on)
    if _is_user_error(error):
        return Failure(
            message=f"{where} failed: {error}\n{after}",
            exit_code=EXIT_USER,
            what=f"{where} failed",
            why=problem_of(error).why,
            fix=problem_of(error).fix,
            go_on=go_on,
        )
    if _is_disk_full(error):
        why = f"the disk is full{_filename(error)}"
        fix = "Free some space, or point store.root at a bigger disk (the finished stages move with the folder)."
        code = EXIT_USER
    elif isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        why = f"out of memory ({_one_line(error)})"
        fix = f"Lower the batch size or the sequence length of [{stage or 'train'}], or pick a smaller model."
        code = EXIT_USER
    else:
        why, fix = f"{type(error).__name__}: {_one_line(error)}", _keep_traceback(error, folder)
        code = EXIT_ERROR
    what = f"{where} failed" if code == EXIT_USER else f"{where} failed unexpectedly"
    stop = "." if code == EXIT_USER else ""
    message = f"{what}: {why}{stop}\n{fix}\n{after}"
    return Failure(message=message, exit_code=code, what=what, why=why, fix=fix, go_on=go_on)


def refused(error: BaseException, *, go_on: str) -> Failure:
    """What was asked for can't be done: another command is needed, so none is offered to be typed again."""
    return Failure(
        message=f"error: {error}",
        exit_code=EXIT_USER,
        what="nothing was run",
        why=problem_of(error).why,
        fix=problem_of(error).fix,
        go_on=go_on,
    )


def _is_user_error(error: BaseException) -> bool:
    """Errors that say what, where and the fix."""
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
    text = printable("".join(traceback.format_exception(error)))
    if folder is not None:
        path = folder / "logs" / "error.txt"
        try:
            run_folder.write_text(path, text)
        except OSError:
            return text
        return f"This looks like a defect of the tool; the traceback is in {path}: please report it."
    return f"This looks like a defect of the tool; please report it with this traceback:\n{text}"
