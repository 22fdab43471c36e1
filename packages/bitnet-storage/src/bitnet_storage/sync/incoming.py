"""What other machines add to a run that one machine holds: files in ``RUN/incoming/``, each put once, whole.

The holder of the run takes them into its working folder; its next snapshot has them, and then they may go.
"""

from pathlib import Path

from bitnet_storage.backends.local import write_error
from bitnet_storage.contract import Objects, StorageError


def folder_of(run: str) -> str:
    return f"{run}/incoming/"


def put_incoming(objects: Objects, run: str, file: Path) -> None:
    """From any machine; the file's name is one that no other machine gives. Raises StorageError."""
    objects.put(folder_of(run) + file.name, file)


def take_incoming(objects: Objects, run: str, into: Path) -> list[Path]:
    """Copy what `into` has not yet; returns the new files. Raises StorageError."""
    taken: list[Path] = []
    for key, size in sorted(objects.sizes(folder_of(run)).items()):
        target = into / key.rpartition("/")[2]
        if target.exists() and target.stat().st_size == size:
            continue
        partial = target.with_name(f".{target.name}.partial")
        try:
            into.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as out:
                for chunk in objects.chunks(key, 0):
                    out.write(chunk)
            partial.replace(target)
        except OSError as error:
            raise write_error(error, into, "store.work") from error
        taken.append(target)
    return taken


def forget_incoming(objects: Objects, run: str, names: frozenset[str]) -> None:
    """Delete those with these names: a snapshot has them. What can't be deleted now goes another time."""
    keys = [key for key in objects.sizes(folder_of(run)) if key.rpartition("/")[2] in names]
    try:
        objects.delete(keys)
    except StorageError:
        return
