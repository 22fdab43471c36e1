"""What each stage wants of a manifest. Here and not in `bitnet_cli.stages`, whose functions take a checked manifest."""

from typing import Final

import attrs


@attrs.frozen(kw_only=True)
class StageFacts:
    """The part of a stage that a manifest is checked by; `bitnet_cli.stages.stage.Stage` is the whole."""

    name: str
    """As `run.stages` writes it."""
    needs: tuple[str, ...] = ()
    """The sections without which it can't run, beside [run] and [store]. Its result depends on them."""
    on_request: bool = False
    """It runs only where the manifest has its section, or names it."""
    borrows: tuple[tuple[str, str], ...] = ()
    """The settings, as (section, key), that may say "teacher": its folder. Then the stage needs [teacher] too."""


STORAGE = StageFacts(name="storage")
DRY_RUN = StageFacts(name="dry_run", needs=("dry_run",), on_request=True)
BASELINE = StageFacts(name="baseline", needs=("teacher", "baseline"))
COLLECT = StageFacts(name="collect", needs=("teacher", "collect"))
PROJECT = StageFacts(name="project", needs=("project",), borrows=(("project", "tokenizer"),))
CALIBRATE = StageFacts(
    name="calibrate", needs=("student",), borrows=(("project", "tokenizer"), ("student", "init_from"))
)
TRAIN = StageFacts(
    name="train", needs=("student", "loss", "train"), borrows=(("project", "tokenizer"), ("student", "init_from"))
)
EVALUATE = StageFacts(name="evaluate", needs=("evaluate",))
EXPORT = StageFacts(name="export", needs=("export",), on_request=True)
REPORT = StageFacts(name="report")

ALL: Final = (STORAGE, DRY_RUN, BASELINE, COLLECT, PROJECT, CALIBRATE, TRAIN, EVALUATE, EXPORT, REPORT)
"""In the order in which they run."""

STAGES: Final = tuple(stage.name for stage in ALL)
"""What `run.stages` may name."""


def stages_of(run_stages: tuple[str, ...]) -> tuple[StageFacts, ...]:
    """The stages with these names, in the order in which they run."""
    return tuple(stage for stage in ALL if stage.name in run_stages)


def default_stages(sections: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """What runs where `run.stages` is not given: all but those on request that none of `sections` asks for."""
    return tuple(stage.name for stage in ALL if not stage.on_request or sections.issuperset(stage.needs))
