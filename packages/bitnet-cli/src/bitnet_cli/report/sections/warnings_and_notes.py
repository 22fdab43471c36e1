"""What a reader must know before believing a figure (warnings), and what the manifest itself asked for (notes)."""

from collections.abc import Iterator

from bitnet_cli.report.blocks import Block, Bullets, Heading, Text
from bitnet_cli.report.number_format import number
from bitnet_cli.report.read_run import RunRecord
from bitnet_cli.report.sections.simplest_models import against
from bitnet_cli.report.sections.training import flip_step


def notice_blocks(run: RunRecord) -> Iterator[Block]:
    found = tuple(warnings(run))
    yield Heading("Warnings")
    yield Bullets(found) if found else Text("None.")
    if asked := tuple(notes(run)):
        yield Heading("Notes", level=3)
        yield Text("As the manifest asked:")
        yield Bullets(asked)


def warnings(run: RunRecord) -> Iterator[str]:
    report = run.evaluation
    for key, label in (("unigram_kl", "the unigram"), ("untrained_kl", "the untrained student")):
        figures = f"{number(report.get('heldout_kl'))} against {number(report.get(key))} nats."
        match against(report, key):
            case found if found is not None and found.standing == "farther":
                yield f"The student is no better than {label}: {figures}"
            case found if found is not None and found.standing == "tie":
                yield f"The student ties with {label}: {figures}"
    if _never_flipped(run) and not _asked_for_8_bits(run):
        yield "Activations never flipped to 4 bits: the figures are A8's."
    if report and not run.baseline and not _without_baseline(run):
        yield "There is no teacher baseline, so there is no speed and no QEI to compare."
    if report and run.baseline and report.get("teacher_memory_bytes") is None and not _hosted(run):
        yield "The teacher's memory is unknown, so QEI is absent."
    if (run.environment.get("git") or {}).get("dirty"):
        yield "Tracked files differed from the commit when this run was made."
    for done in run.done.values():
        for warning in done.summary.get("warnings") or ():
            yield f"{done.stage}: {warning}"


def notes(run: RunRecord) -> Iterator[str]:
    if _never_flipped(run) and _asked_for_8_bits(run):
        yield "Activations stayed at 8 bits, as they are deployed (student.activation_bits, train.flip_fraction)."
    if run.evaluation and not run.baseline and _without_baseline(run):
        yield "run.stages has no baseline, so there is no speed and no QEI to compare."
    if run.evaluation and run.baseline and run.evaluation.get("teacher_memory_bytes") is None and _hosted(run):
        yield "The teacher is hosted, and the manifest says nothing of its memory: there is no QEI."


def _never_flipped(run: RunRecord) -> bool:
    return bool(run.metrics) and flip_step(run.metrics) is None and run.metrics[-1].get("bits") == 8


def _asked_for_8_bits(run: RunRecord) -> bool:
    """The training flips after `flip_fraction` of its tokens: 1 is never; and only to `activation_bits`."""
    flip = run.setting("train", "flip_fraction")
    return run.setting("student", "activation_bits") == 8 or (isinstance(flip, int | float) and flip >= 1)


def _without_baseline(run: RunRecord) -> bool:
    stages = run.setting("run", "stages")
    return isinstance(stages, list) and "baseline" not in stages


def _hosted(run: RunRecord) -> bool:
    return run.setting("teacher", "kind") not in (None, "local")
