"""How a run came about: its settings, when each stage was done and on what machine, and how to cite it."""

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from bitnet_cli import run_folder
from bitnet_cli.report.blocks import Block, Code, Heading, Link, Table, Text
from bitnet_cli.report.number_format import stage_times
from bitnet_cli.report.read_run import RunRecord
from bitnet_cli.report.sections.key_facts import teacher_name


def settings_blocks(run: RunRecord) -> Iterator[Block]:
    yield Heading("Settings")
    if run.manifest_toml:
        yield Code(run.manifest_toml, summary="The resolved manifest")
    else:
        yield Text("manifest.resolved.toml is missing.")
    differing = tuple(_differing(run))
    if differing:
        yield Text("These stages were done with other settings than the manifest has now:")
        yield Table(("setting", "stage", "done with", "manifest"), differing, numeric=False)


def _differing(run: RunRecord) -> Iterator[tuple[str, str, str, str]]:
    for stage, done in run.done.items():
        for name, value in done.settings.items():
            now: Any = run.manifest
            for part in name.split("."):
                now = now.get(part) if isinstance(now, dict) else None
            # what a manifest leaves out is unset; a table stands for its settings, which are listed by themselves
            if now != value and not isinstance(now, dict) and stage != "storage":
                yield name, stage, setting_text(value), setting_text(now)


def setting_text(value: Any) -> str:
    return "unset" if value is None else json.dumps(value, ensure_ascii=False, default=str)


def provenance_blocks(run: RunRecord) -> Iterator[Block]:
    yield Heading("Provenance")
    if run.done:
        header = ("stage", "finished (UTC)", "seconds", "result")
        yield Table(header, stage_times(run.done.values()), numeric=False)
    else:
        yield Text("No stage has finished yet.")
    environment, git = run.environment, run.environment.get("git") or {}
    torch = environment.get("torch") or {}
    packages = environment.get("packages") or {}
    facts = (
        ("commit", f"{git['commit']}{', with changes' if git.get('dirty') else ''}" if git else "not in a repository"),
        ("uv.lock sha256", environment.get("uv_lock_sha256")),
        ("machine", f"{environment.get('cpu')}, {environment.get('cpu_count')} cores" if environment else None),
        ("platform", environment.get("platform")),
        ("python", environment.get("python")),
        ("device", f"{torch.get('device')}, {torch.get('threads')} threads" if torch else None),
        (
            "packages",
            ", ".join(f"{name} {packages[name]}" for name in ("torch", "transformers", "pyarrow") if name in packages),
        ),
    )
    rows = tuple((name, str(value)) for name, value in facts if value)
    if environment:
        yield Table(("what", "value"), rows, numeric=False)
    else:
        yield Text("environment.json: not there yet.")
    if run.files:
        links = [part for path in sorted(run.files) for part in (", ", Link(path, quote(path)))]
        yield Text(("Files of this run: ", *links[1:], "."))


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
