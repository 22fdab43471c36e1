"""What a stage is: a frozen record and a plain function. The list of them is `bitnet_cli.stages.PIPELINE`."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from bitnet_cli.manifest.stage_needs import StageFacts
from bitnet_cli.run_folder import find_files

if TYPE_CHECKING:
    from bitnet_cli.errors import Problem
    from bitnet_cli.manifest import Manifest
    from bitnet_cli.plugins.catalog import Plugins
    from bitnet_cli.stages.open_teacher import TeacherHandle
    from bitnet_storage.contract import Store

OnProgress = Callable[[int, int, str], None]
"""``on_progress(done, total, note)``"""


@attrs.frozen(kw_only=True)
class Context:
    """What a stage is given to work with."""

    manifest: "Manifest"
    folder: Path
    """The run folder."""
    plugins: "Plugins"
    store: "Store"
    teacher: "TeacherHandle"
    """Opened only when a stage asks it something."""
    on_progress: OnProgress
    notify: Callable[[str], None]
    """Tell the user a line: a warning, a notice."""
    confirm: Callable[[str], None]
    """Ask the user a question before the first progress is shown. Raises UserError where the answer is not yes."""
    seed: int
    fingerprint: str
    """Of everything that the stage's result depends on."""
    resume: bool
    """What lies in the run folder was left by this stage with the same settings and inputs, or with less of what may
    grow."""
    lineage: str = ""
    """As `fingerprint`, without the stage's `may_grow`."""


@attrs.frozen(kw_only=True)
class Stage:
    """One step of the pipeline. `reads` and `writes` are paths or globs within the run folder."""

    facts: StageFacts
    """Its name, and what it wants of a manifest."""
    run: Callable[[Context], dict[str, Any]]
    """Does the work and returns a summary (plain JSON values)."""
    writes: tuple[str, ...]
    reads: tuple[str, ...] = ()
    reads_if_there: tuple[str, ...] = ()
    """Inputs that make the result better; without them the stage runs all the same."""
    sections: tuple[str, ...] = ()
    """What the result depends on beside `facts.needs`, e.g. ``("student", "run.seed")``; each must be there."""
    ignores: tuple[str, ...] = ()
    """Settings in those sections that change the speed, not the result."""
    find: Callable[[Path, str], list[Path]] = find_files
    """Which files one of `writes` stands for once the stage is done; only these are watched."""
    formats: Mapping[str, int] = attrs.field(factory=dict)
    """Versions of the file formats read and written."""
    paths_as_written: bool = False
    """Paths in its sections count as they are written, not by what lies there."""
    asks_teacher: bool = False
    """The stage calls the teacher: with SKIP_EXTERNAL=1 it is skipped where the teacher is external."""
    unwatched: tuple[str, ...] = ()
    """Of `writes`: nothing is redone because one of these was changed or is gone."""
    goes_on_from: str | None = None
    """The files from which a stopped stage goes on; None: it starts over."""
    may_grow: tuple[str, ...] = ()
    """Settings of which more may be wanted: then the stage goes on from what is there."""
    keeps_former: bool = False
    """What other settings have made is moved to ``set_aside/``, not deleted: it took hours."""
    keeps_writes: bool = False
    """What is there already is used again (a teacher was paid for it): it is not cleared before the stage runs."""
    check: Callable[["Manifest", "Plugins"], Iterable["Problem"]] | None = None
    """What would stop the stage; found by a plan, and before an earlier stage asks the teacher."""
    idle: Callable[["Manifest"], str | None] | None = None
    """Why there is nothing to do for the stage by this manifest; None: there is. An idle stage is skipped, and nobody
    waits for what it writes."""
    dependencies: Callable[["Manifest"], tuple[str, ...]] | None = None
    """Further sections that count only with some settings, e.g. the teacher when the student starts from it."""

    @property
    def name(self) -> str:
        return self.facts.name

    def all_sections(self) -> tuple[str, ...]:
        return self.facts.needs + self.sections

    def sections_of(self, manifest: "Manifest") -> tuple[str, ...]:
        return self.all_sections() + (self.dependencies(manifest) if self.dependencies else ())
