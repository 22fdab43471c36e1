"""A task of a sweep in a process of its own, and what is told of it."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest

from bitnet_cli.errors import UserError
from bitnet_cli.sweeping.schedule import Task
from bitnet_cli.sweeping.variants import Variant
from bitnet_cli.sweeping.worker import Job, OpenSweepWorker

TASK = Task(Variant("one", (), "one"), ("train",), ())


@pytest.fixture
def job(tmp_path: Path) -> Job:
    (tmp_path / "m.toml").touch()
    return Job(
        manifest=tmp_path / "m.toml", overrides=(), env_file=None, yes=True, runs=("one",), folder=tmp_path,
        cwd=tmp_path, again="bitnet sweep",
    )  # fmt: skip


def done(job: Job) -> Any:
    async def do() -> Any:
        worker = await OpenSweepWorker(job)(0, None)  # type: ignore[arg-type]  # it asks nothing
        return await worker.do(TASK)

    return asyncio.run(do())


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What stands for Python: prints these lines and ends with this code."""

    def as_python(printed: str, code: int) -> None:
        program = tmp_path / "python"
        program.write_text(f"#!/bin/sh\nprintf '%s' '{printed}'\nexit {code}\n")
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))

    return as_python


def test_why_it_failed_is_what_this_attempt_said(job: Job, runs: Any, tmp_path: Path) -> None:
    runs('{"event": "stage_failed", "stage": "train", "why": "the loss is not finite", "fix": "lower it"}\n', 2)
    with pytest.raises(UserError) as error:
        done(job)
    assert (error.value.why, error.value.fix) == ("train: the loss is not finite", "lower it")
    runs("", 137)  # killed before it could say anything
    with pytest.raises(UserError) as error:
        done(job)
    assert error.value.why == f"its process ended with code 137; see {tmp_path / 'one.log'}"
    runs('{"event": "run_finished"}\n', 0)
    assert done(job) == {"event": "run_finished"}
    assert len((tmp_path / "one.jsonl").read_text().splitlines()) == 2  # all attempts are kept


@pytest.mark.parametrize("lost", ["manifest", "folder", "cwd"])
def test_a_worker_that_does_not_see_the_runs_is_refused(job: Job, tmp_path: Path, lost: str) -> None:
    elsewhere = attrs.evolve(job, **{lost: tmp_path / "of-another-machine"})
    with pytest.raises(
        UserError, match=r"worker 0 does not see .*of-another-machine: it is on another machine"
    ) as error:
        done(elsewhere)
    assert "store.root on a disk that all machines share" in error.value.fix
