"""SIGKILL at twenty random moments of a push: the durable place shows the old artefacts or the new ones, never half."""

import json
import random
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bitnet_storage.config import LocalStoreConfig, S3StoreConfig
from bitnet_storage.contract import DurableStore
from bitnet_storage.plugin import _open_local, _open_s3
from bitnet_storage.testing.conformance import read

RUN = "killed"
MOMENTS = 20

# Every push of the child replaces every file by the bytes of its generation; it pushes until it is killed.
CHILD = """
import json, os, sys
from pathlib import Path
from bitnet_storage.config import LocalStoreConfig, S3StoreConfig
from bitnet_storage.plugin import _open_local, _open_s3

kind, options, first = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
paths = {name: Path(value) for name, value in options.items() if name in ("root", "work")}
options = options | paths
store = _open_s3(S3StoreConfig(**options)) if kind == "s3" else _open_local(LocalStoreConfig(**options))
folder = store.run_folder("killed")
print("ready", flush=True)
for number in range(first, first + 100_000):
    for name, size in (("model.bin", 9_000_000), ("a small ü.json", 500), ("stages/train/done.json", 50)):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(".tmp")
        temporary.write_bytes(number.to_bytes(4, "big") * (size // 4))
        temporary.replace(file)
    store.push("killed")
    print("pushed", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["local", "s3"])
def test_a_killed_push_leaves_the_old_or_the_new(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, str] = {"root": str(tmp_path / "durable")}
    if kind == "s3":
        s3: S3StoreConfig = request.getfixturevalue("s3_options")
        options = {
            name: getattr(s3, name) for name in ("bucket", "prefix", "endpoint", "access_key_env", "secret_key_env")
        }  # type: ignore[misc]
    generations = [0]
    moments = random.Random(secrets.randbits(64))
    for turn in range(MOMENTS):
        first = generations[-1] + 1
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, kind, json.dumps(options | {"work": str(tmp_path / "first")}), str(first)],
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        if turn == 0:  # one push ends, however busy the machine is
            assert child.stdout.readline() == b"pushed\n"
        time.sleep(moments.uniform(0.0, 0.25))
        child.send_signal(signal.SIGKILL)
        child.communicate()
        reader = opened(kind, options, tmp_path / f"reader-{turn}")
        reader.pull(RUN)
        generations.append(whole_generation(read(tmp_path / f"reader-{turn}" / RUN)))
        assert generations[-1] >= generations[-2]
    assert generations[1] > 0
    again = opened(kind, options, tmp_path / "first")
    again.push(RUN)  # and the next push goes on
    last = opened(kind, options, tmp_path / "last")
    last.pull(RUN)
    assert read(tmp_path / "last" / RUN) == read(tmp_path / "first" / RUN)


def opened(kind: str, options: dict[str, str], work: Path) -> DurableStore:
    paths = {name: Path(value) for name, value in options.items() if name == "root"}
    config = LocalStoreConfig if kind == "local" else S3StoreConfig
    store = (_open_local if kind == "local" else _open_s3)(config(**options | paths, work=work))  # type: ignore[arg-type]
    assert isinstance(store, DurableStore)
    return store


def whole_generation(files: dict[str, bytes]) -> int:
    """The one generation that all files are of; 0: there are none yet."""
    if not files:
        return 0
    assert sorted(files) == ["a small ü.json", "model.bin", "stages/train/done.json"]
    numbers = {content[at : at + 4] for content in files.values() for at in (0, len(content) // 8 * 4)}
    assert len(numbers) == 1, "half of one push and half of another"
    return int.from_bytes(numbers.pop(), "big")
