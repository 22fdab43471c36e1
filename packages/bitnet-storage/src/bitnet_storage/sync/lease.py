"""An advisory lease: one writer of a run at a time, as well as the durable place allows.

The holder writes ``RUN/lease/EXPIRES-ID.json`` and, from a thread, a later one before that lapses; it deletes it at the
end. Who finds another's waits until it lapses: if a later one has come meanwhile the holder is alive, and the run is
refused; if not, its machine is gone. What really protects the snapshots is that each generation can be made once only.
"""

import contextlib
import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from bitnet_storage.contract import ObjectMissingError, Objects, StorageError

Notify = Callable[[str], None]

_HELD: set[str] = set()
"""Ids of the leases that this process holds: one that it could not delete at its end is nobody's."""


@attrs.frozen(kw_only=True)
class Holder:
    """Who holds a lease."""

    id: str
    host: str
    boot: str
    """Tells two machines of one name apart, and a machine from itself before it was restarted."""
    pid: int
    since: str

    def is_dead(self) -> bool:
        """Whether it was a process of this very machine that is gone."""
        if (self.host, self.boot) != (platform.node(), _boot()) or not self.boot:
            return False
        if self.pid == os.getpid():
            return self.id not in _HELD
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return False


@contextmanager
def lease(
    objects: Objects,
    run: str,
    seconds: float,
    notify: Notify,
    *,
    now: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[None]:
    """Hold the lease of `run`. Raises StorageError where another machine is at work on it."""
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now()))
    own = Holder(id=secrets.token_hex(8), host=platform.node(), boot=_boot(), pid=os.getpid(), since=since)
    _wait_for_others(objects, run, seconds, notify, now, sleep)
    _HELD.add(own.id)
    stop = threading.Event()
    mine: list[str] = []
    keeper = threading.Thread(
        target=_keep, args=(objects, run, own, seconds, mine, stop, now), name="lease", daemon=True
    )
    try:  # from its first moment on: a signal may end it anywhere
        mine.append(_write(objects, run, own, now() + seconds))
        others = _others(objects, run, own.id)
        for key, holder in others.items():
            if _expires(key) > now() and (holder.since, holder.id) < (own.since, own.id):
                raise _busy(objects, run, holder)
        keeper.start()
        yield
    finally:
        stop.set()
        if keeper.is_alive():
            keeper.join(timeout=30)
        _HELD.discard(own.id)
        with contextlib.suppress(StorageError):  # it lapses by itself; the run's own outcome is what counts
            objects.delete(mine)


def _wait_for_others(
    objects: Objects, run: str, seconds: float, notify: Notify, now: Callable[[], float], sleep: Callable[[float], None]
) -> None:
    """Return once no living holder is left. Raises StorageError where one renews its lease."""
    first_seen: dict[str, float] = {}
    while living := _living(objects, run, now()):
        for holder, expires in living:
            if expires > first_seen.setdefault(holder.id, expires):
                raise _busy(objects, run, holder)
        holder, expires = max(living, key=lambda each: each[1])
        pause = min(expires - now(), seconds)
        notify(
            f"{holder.host} (process {holder.pid}, since {holder.since}) holds run {run} in {objects.location}; "
            f"looking for up to {pause:.0f} s whether it is still alive"
        )
        notify = _quiet  # once is enough
        sleep(max(0.05, pause / 4))


def _living(objects: Objects, run: str, at: float) -> list[tuple[Holder, float]]:
    """Who may be at work, and until when their leases hold; what has lapsed is removed."""
    found: dict[str, tuple[Holder, float]] = {}
    for key, holder in _others(objects, run, "").items():
        if holder.is_dead() or _expires(key) <= at:
            objects.delete([key])
        elif holder.id not in found or found[holder.id][1] < _expires(key):
            found[holder.id] = (holder, _expires(key))
    return list(found.values())


def _quiet(_: str) -> None:
    return


def _keep(
    objects: Objects,
    run: str,
    own: Holder,
    seconds: float,
    mine: list[str],
    stop: threading.Event,
    now: Callable[[], float],
) -> None:
    """Renew until told to stop. A renewal that fails is tried again at the next turn."""
    while not stop.wait(seconds / 4):
        try:
            old = list(mine)
            mine.append(_write(objects, run, own, now() + seconds))
            objects.delete(old)
            del mine[: len(old)]
        except StorageError:
            continue


def _write(objects: Objects, run: str, own: Holder, expires: float) -> str:
    key = f"{run}/lease/{int(expires * 1000):014d}-{own.id}.json"
    objects.put(key, json.dumps(attrs.asdict(own)).encode())
    return key


def _others(objects: Objects, run: str, own: str) -> dict[str, Holder]:
    """Lease's key → holder. Listed again where one went meanwhile: its holder has just renewed it."""
    while True:
        found: dict[str, Holder] = {}
        try:
            for key in sorted(objects.sizes(f"{run}/lease/")):
                holder = _read(objects, key)
                if holder.id != own:
                    found[key] = holder
        except ObjectMissingError:
            continue
        return found


def _read(objects: Objects, key: str) -> Holder:
    try:
        value: Any = json.loads(b"".join(objects.chunks(key, 0)))
        return Holder(**value)
    except (ValueError, TypeError):  # cut off while it was written
        return Holder(id=Path(key).stem, host="an unknown machine", boot="", pid=0, since="an unknown time")


def _expires(key: str) -> float:
    """Seconds since 1970; 0 for a name that holds none."""
    digits = key.rpartition("/")[2].partition("-")[0]
    return int(digits) / 1000 if digits.isdigit() else 0.0


def _busy(objects: Objects, run: str, holder: Holder) -> StorageError:
    return StorageError(
        f"run {run} in {objects.location} is being worked on by {holder.host} (process {holder.pid}, since "
        f"{holder.since})",
        "wait for it or stop it; or use another run.name",
    )


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
