"""How to cite a run: what was done, with what, and the digests that tell whether another has the same."""

import re
from collections.abc import Iterator

from bitnet_cli import run_folder
from bitnet_cli.report.blocks import Block, Code, Heading, Text
from bitnet_cli.report.read_run import RunRecord
from bitnet_cli.report.sections.key_facts import teacher_name

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_SPECIAL = re.compile(r"([\\{}$&#%_^~])")


def cite_blocks(run: RunRecord) -> Iterator[Block]:
    """Nothing before a training has ended: there is no student to cite."""
    if "train" not in run.done:
        return
    yield Heading("Cite this run")
    yield Text(
        "The authors are for you to fill in. The digests are sha256 of the traces that the student learned from and of "
        "its checkpoint; bitnet runs verify tells whether a copy of the run holds what its records say."
    )
    yield Code(bibtex(run))


def bibtex(run: RunRecord) -> str:
    """One entry for the run, one for the software."""
    trained = run.done["train"]
    teacher, version = teacher_name(run), (run.environment.get("packages") or {}).get("bitnet-cli")
    git, traces = run.environment.get("git") or {}, trained.inputs.get(run_folder.TRACES)
    checkpoint = trained.outputs.get(run_folder.CHECKPOINTS)
    software = "BitNet KDE" + (f" {version}" if version else "")
    made = ", ".join(
        filter(
            None,
            (
                f"{software}, commit {str(git['commit'])[:12]}" if git.get("commit") else software,
                f"traces {str(traces)[:16]}" if traces else "",
                f"checkpoint {checkpoint.digest[:16]}" if checkpoint is not None else "",
            ),
        )
    )
    student = f"a ternary student of {teacher}" if teacher else "a ternary student"
    entry = {
        "author": "{Authors of the run}",
        "title": f"{{{_escaped(run.name)}: {_escaped(student)}}}",
        "note": f"{{{_escaped(made)}}}",
        **_date(trained.finished),
    }
    tool = {
        "author": "{{The BitNet KDE authors}}",
        "title": "{{BitNet KDE}}",
        **({"version": f"{{{_escaped(str(version))}}}"} if version else {}),
        **_date(trained.finished, month=False),
    }
    key = re.sub(r"[^A-Za-z0-9]+", "-", run.name).strip("-").lower() or "run"
    return f"{_entry('misc', f'bitnet-kde-run-{key}', entry)}\n\n{_entry('software', 'bitnet-kde', tool)}\n"


def _entry(kind: str, key: str, fields: dict[str, str]) -> str:
    lines = ",\n".join(f"  {name:<8}= {value}" for name, value in fields.items())
    return f"@{kind}{{{key},\n{lines}\n}}"


def _date(finished: str, *, month: bool = True) -> dict[str, str]:
    found = re.match(r"(\d{4})-(\d\d)", finished)
    if found is None:
        return {}
    number = int(found[2])
    named = {"month": _MONTHS[number - 1]} if month and 1 <= number <= 12 else {}
    return {"year": found[1], **named}


def _escaped(text: str) -> str:
    """For LaTeX: a name may hold underscores and worse."""
    words = {"\\": r"\textbackslash{}", "^": r"\^{}", "~": r"\~{}"}
    return _SPECIAL.sub(lambda match: words.get(match[1], f"\\{match[1]}"), " ".join(text.split()))
