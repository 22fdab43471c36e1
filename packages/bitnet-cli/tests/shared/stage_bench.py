"""Small fake stages, a teacher and a store, and a pipeline of them that runs in a temporary folder."""

import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
from rich.console import Console

from bitnet_cli import run_folder
from bitnet_cli.manifest.stage_needs import StageFacts
from bitnet_cli.pipeline.engine import Run, RunOptions, run_pipeline
from bitnet_cli.pipeline.run_or_skip import Request
from bitnet_cli.reporter.progress import Reporter
from bitnet_cli.stages.open_teacher import TeacherHandle
from bitnet_cli.stages.stage import Context, Stage
from bitnet_providers.contract import Capabilities, TeacherPlugin


@attrs.frozen
class RunSection:
    name: str = "fake"
    seed: int = 7
    stages: tuple[str, ...] | None = None


@attrs.frozen
class Tagged:
    kind: str = "folder"
    options: Any = None


@attrs.frozen
class Collect:
    top_k: int = 20
    prompts: Path | None = attrs.field(default=None, metadata={"path": True})


@attrs.frozen
class Train:
    steps: int = 200


@attrs.frozen
class Fake:
    run: RunSection = RunSection()
    store: Tagged = Tagged()
    teacher: Tagged | None = Tagged(kind="fake")
    collect: Collect | None = Collect()
    train: Train | None = Train()


class FolderStore:
    """A store of one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run_folder(self, run_name: str) -> Path:
        folder = self.root / run_name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def cache_environment(self) -> dict[str, str]:
        return {}

    def free_bytes(self) -> int:
        return 10**9


class FakeTeacher:
    """Counts how often it is opened and asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.closed = 0

    async def aclose(self) -> None:
        self.closed += 1


def collect(context: Context) -> dict[str, Any]:
    async def ask(teacher: Any) -> None:
        teacher.asked += 1

    context.teacher.ask(ask)
    # the journal: an answer that is there is not asked for again
    (context.folder / "raw" / "journal").write_text("paid")
    run_folder.write_text(context.folder / "raw" / "shard_000.txt", f"k={context.manifest.collect.top_k}")
    context.on_progress(1, 1, "one answer")
    return {"headline": "1 answer"}


def train(context: Context) -> dict[str, Any]:
    raw = (context.folder / "raw" / "shard_000.txt").read_text()
    steps = context.folder / "checkpoints" / "steps.txt"
    before = steps.read_text() + " then " if steps.exists() else ""
    run_folder.write_text(context.folder / "logs" / "metrics.txt", "loss")
    run_folder.write_text(steps, f"{before}{context.manifest.train.steps} on {raw}")
    return {"resume": context.resume}


def report(context: Context) -> dict[str, Any]:
    run_folder.write_text(context.folder / "report.md", "report")
    return {}


COLLECT = Stage(
    facts=StageFacts(name="collect", needs=("teacher", "collect")),
    run=collect,
    writes=("raw/shard_*.txt",),
    sections=("run.seed",),
    asks_teacher=True,
    keeps_writes=True,
    goes_on_from="raw/journal",
)


TRAIN = Stage(
    facts=StageFacts(name="train", needs=("train",)),
    run=train,
    reads=COLLECT.writes,
    writes=("checkpoints/**/*", "logs/metrics.txt"),
    unwatched=("logs/metrics.txt",),
    goes_on_from="checkpoints/steps.txt",
)


REPORT = Stage(facts=StageFacts(name="report"), run=report, reads_if_there=TRAIN.writes, writes=("report.md",))


PIPELINE = (COLLECT, TRAIN, REPORT)


@attrs.define
class Bench:
    """Runs the fake pipeline in one folder, again and again."""

    root: Path
    manifest: Fake = Fake()
    pipeline: tuple[Stage, ...] = PIPELINE
    external: bool = False
    teacher: FakeTeacher = attrs.Factory(FakeTeacher)
    opened: int = 0
    output: str = ""
    store: Any = None

    @property
    def folder(self) -> Path:
        return self.root / "fake"

    def run(self, discard_paid: bool = False, **request: Any) -> int:
        def open_teacher(options: Any) -> Any:
            self.opened += 1
            return self.teacher

        capabilities = Capabilities(
            max_top_logprobs=20, token_ids=True, token_bytes=False, scoring=True, external=self.external
        )
        plugin = TeacherPlugin(name="fake", options=object, capabilities=capabilities, open=open_teacher)
        store = self.store or SimpleNamespace(open=lambda options: FolderStore(self.root))
        plugins = SimpleNamespace(require_store=lambda kind: store, all=())
        stream = io.StringIO()
        wanted = Request(**request)
        code = run_pipeline(
            Run(
                manifest=self.manifest,  # type: ignore[arg-type]
                resolved_toml='[run]\nname = "fake"\n',
                plugins=plugins,  # type: ignore[arg-type]
                pipeline=self.pipeline,
                request=wanted,
                reporter=Reporter(Console(file=stream, width=500)),
                command="bitnet run m.toml",
                teacher=TeacherHandle(plugin, None, skip_external=wanted.skip_external),
                options=RunOptions(discard_paid=discard_paid),
            )
        )
        self.output = stream.getvalue()
        return code

    def change(self, **sections: Any) -> None:
        self.manifest = attrs.evolve(self.manifest, **sections)

    def ran(self) -> list[str]:
        """The stages of the last run that did something."""
        words = (" running: ", " resuming: ", " again: ")
        return [line.split()[0] for line in self.output.splitlines() if any(word in line for word in words)]

    def line(self, stage: str) -> str:
        """The first thing said of a stage."""
        return next(line for line in self.output.splitlines() if line.startswith(f"{stage:<9} "))

    def replace(self, name: str, run: Callable[[Context], dict[str, Any]]) -> None:
        self.pipeline = tuple(attrs.evolve(stage, run=run) if stage.name == name else stage for stage in self.pipeline)


def failing(error: BaseException) -> Callable[[Context], dict[str, Any]]:
    def run(context: Context) -> dict[str, Any]:
        raise error

    return run
