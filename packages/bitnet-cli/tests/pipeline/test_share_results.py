"""What another run has done alike is taken over, whole and only where it is the same."""

from pathlib import Path
from typing import Any

import attrs
import pytest

from bitnet_cli import run_folder
from bitnet_cli.manifest.stage_needs import StageFacts
from bitnet_cli.pipeline import run_or_skip
from bitnet_cli.pipeline.fingerprint import digest_file, digest_of
from bitnet_cli.pipeline.run_or_skip import Request, State
from bitnet_cli.pipeline.share_results import _take, share_results
from bitnet_cli.run_folder import Artifact, Done
from bitnet_cli.stages.stage import Stage


@attrs.frozen
class Section:
    value: int


@attrs.frozen
class Settings:
    ask: Section
    learn: Section


ASK = Stage(
    facts=StageFacts(name="ask", needs=("ask",)),
    run=lambda context: {},
    writes=("raw/shard_*",),
    keeps_writes=True,
    goes_on_from="raw/**/*",
)
LEARN = Stage(
    facts=StageFacts(name="learn", needs=("learn",)), run=lambda context: {}, writes=("data/x",), reads=ASK.writes
)
STAGES = (ASK, LEARN)


def state(folder: Path, ask: int = 1, learn: int = 1) -> State:
    return State(STAGES, STAGES, Settings(Section(ask), Section(learn)), folder, False, Request())


def do(where: State, text: str = "") -> Path:
    """As if both stages had run there."""
    folder = where.folder
    assert folder is not None
    for stage, name in ((ASK, "raw/shard_000"), (LEARN, "data/x")):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text or f"{stage.name} {where.manifest}")
        (folder / "raw/journal-1").write_text("paid")
        identity: Any = attrs.asdict(run_or_skip.identify(where, stage))
        artifact = Artifact(
            digest=digest_of({name: digest_file(file)}),
            files={name: file.stat().st_size},
            sha256={name: digest_file(file)},
        )
        done = Done(
            stage=stage.name, fingerprint=run_or_skip.identify(where, stage).fingerprint, finished="2026", seconds=1.0,
            outputs={stage.writes[0]: artifact}, summary={}, packages={}, **identity,
        )  # fmt: skip
        run_folder.write_done(folder, done)
    return folder


def share(where: State, *others: Path) -> set[str]:
    return set(share_results(where, others, [stage.name for stage in STAGES]))


def actions(where: State) -> list[str]:
    return [run_or_skip.decide(where, stage).action for stage in STAGES]


def test_what_is_the_same_is_taken_and_what_differs_is_not(tmp_path: Path) -> None:
    other = do(state(tmp_path / "other"))
    same, differs = state(tmp_path / "same"), state(tmp_path / "differs", learn=2)
    assert share(same, tmp_path / "nothing", other) == {"ask", "learn"}
    assert share(differs, other) == {"ask"}
    assert actions(same) == ["skip", "skip"]
    assert actions(differs) == ["skip", "run"]
    assert (tmp_path / "differs/raw/journal-1").read_text() == "paid"  # so that nothing is paid for twice
    assert not (tmp_path / "differs/data").exists()
    assert share(same, other) == set()  # it is there


def test_what_is_out_of_date_here_gives_way(tmp_path: Path) -> None:
    other, here = do(state(tmp_path / "other")), state(tmp_path / "here")
    do(state(tmp_path / "here", ask=2), "old")
    (tmp_path / "here/raw/shard_001").write_text("old")
    assert share(here, other) == {"ask", "learn"}
    assert sorted(path.name for path in (tmp_path / "here/raw").iterdir()) == ["journal-1", "shard_000"]
    assert (tmp_path / "here/raw/shard_000").read_text() == (other / "raw/shard_000").read_text()


@pytest.mark.parametrize("damage", ["gone", "changed", "unfinished"])
def test_what_the_other_has_not_whole_is_not_taken(tmp_path: Path, damage: str) -> None:
    other = do(state(tmp_path / "other"))
    match damage:
        case "gone":
            (other / "raw/shard_000").unlink()
        case "changed":
            (other / "raw/shard_000").write_text("more than there was, and other")
        case "unfinished":
            run_folder.done_path(other, "ask").unlink()
    here = state(tmp_path / "here")
    assert share(here, other) == set()
    assert actions(here)[0] == "run"


def test_writing_there_changes_nothing_here(tmp_path: Path) -> None:
    other = do(state(tmp_path / "other"))
    share(state(tmp_path / "here"), other)
    before = (tmp_path / "here/raw/shard_000").read_text()
    run_folder.write_text(other / "raw/shard_000", "new")  # as every file of a run folder is written
    assert (tmp_path / "here/raw/shard_000").read_text() == before


def test_a_training_is_taken_with_what_it_goes_on_from_and_what_was_there_is_kept(tmp_path: Path) -> None:
    train = attrs.evolve(LEARN, keeps_former=True, writes=("data/*",))
    do(state(tmp_path / "donor"))
    (tmp_path / "donor/data/moments").write_text("moments")
    (tmp_path / "own/data").mkdir(parents=True)
    (tmp_path / "own/data/x").write_text("of other settings")
    _take(train, tmp_path / "donor", tmp_path / "own")
    assert (tmp_path / "own/data/moments").read_text() == "moments"
    (kept,) = (tmp_path / "own/set_aside").rglob("x")
    assert kept.read_text() == "of other settings"
