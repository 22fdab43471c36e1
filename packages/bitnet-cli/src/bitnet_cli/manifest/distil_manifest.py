"""The manifest of the common case: ``own.toml``, with a teacher, files, and what else `bitnet distil` was told."""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
import tomli

from bitnet_cli.errors import UserError
from bitnet_cli.manifest.overrides import parse_override
from bitnet_cli.wording.toml_values import literal
from bitnet_providers.hub.names import hub_name

OWN = Path(__file__).parents[1] / "starter/manifests/own.toml"
_MOST_LAYERS = 10_000
_LAYERS = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")


@attrs.frozen(kw_only=True)
class OwnCase:
    """What `bitnet distil` is told. Places are as they were written: relative ones start at the working folder."""

    teacher: str
    prompts: str | None = None
    texts: str | None = None
    """One of both is there."""
    student: str | None = None
    """A model, or layers of the teacher: ``0-3,28,29``; None: all of them."""
    minutes: float | None = None
    skip_unusable: bool = False
    """Leave out rows of the files that can't be used."""

    def command(self) -> str:
        """What to type for it."""
        words = ["bitnet", "distil"]
        for key in ("teacher", "prompts", "texts", "student"):
            value = getattr(self, key)
            words += [] if value is None else [f"--{key}", value]
        words += [] if self.minutes is None else ["--minutes", f"{self.minutes:g}"]
        return shlex.join([*words, *(["--skip-unusable"] if self.skip_unusable else [])])


def own_manifest(case: OwnCase, name: str, sizes: Mapping[str, int] | None = None) -> str:
    """The text of a manifest that lies in the working folder. Raises UserError.

    `sizes`: ``collect.max_prompts``, ``train.steps``, ``train.budget_tokens``, as far as they are not `own.toml`'s.
    """
    text = OWN.read_text(encoding="utf-8")
    lines = text.splitlines()
    lines[0] = f"# Written by: {case.command()}"
    lines = [line for line in lines if not line.startswith("#:schema")]
    text = "\n".join(lines) + "\n"
    text = _put(text, "run", "name", literal(name))
    text = _put(text, "store", "root", '"runs"')
    text = _put(text, "teacher", "model", literal(case.teacher))
    asked = case.prompts or case.texts
    assert asked is not None
    text = _put(text, "baseline", "prompts", literal(asked))
    text = _put(text, "collect", "prompts", None if case.prompts is None else literal(case.prompts))
    text = _put(text, "collect", "texts", None if case.texts is None else literal(case.texts))
    if case.skip_unusable:
        for section in ("baseline", "collect"):
            text = _put(text, section, "skip_unusable", "true")
    for setting, value in (sizes or {}).items():
        section, _, key = setting.partition(".")
        text = _put(text, section, key, str(value))
    layers = None if case.student is None else layers_of(case.student)
    if layers is not None:
        text = _put(text, "student", "layers", f"[{', '.join(map(str, layers))}]")
    elif case.student is not None:
        text = _put(text, "student", "init_from", literal(case.student))
        text = _put(text, "project", "tokenizer", literal(case.student))
    return text


def with_settings(text: str, overrides: Sequence[str]) -> str:
    """The manifest with every ``KEY=VALUE`` in it. Raises UserError."""
    for override in overrides:
        name, value = parse_override(override)
        section, _, key = name.rpartition(".")
        written = literal(value) if isinstance(value, str) else override.partition("=")[2].strip()
        if not section:
            first, end, rest = text.partition("\n")
            text = f"{first}{end}{key} = {written}\n{rest}"
            continue
        if f"[{section}]\n" not in text:
            text += f"\n[{section}]\n"
        text = _put(text, section, key, written).rstrip("\n") + "\n"
    try:
        tomli.loads(text)
    except tomli.TOMLDecodeError:
        names = ", ".join(each.partition("=")[0] for each in overrides)
        raise UserError(
            f"--set {names}: a whole table, or a key twice, can't be printed", "set keys one by one: SECTION.KEY=VALUE"
        ) from None
    return text


def layers_of(student: str) -> list[int] | None:
    """``0-3,28,29`` as numbers; None: it is a model. Raises UserError for a range that runs backwards."""
    if not _LAYERS.fullmatch(student):
        return None
    layers: list[int] = []
    for part in student.split(","):
        first, _, last = part.partition("-")
        if int(last or first) > _MOST_LAYERS:
            raise UserError(f"--student {student[:40]}: no model has so many layers", "count them from 0")
        span = range(int(first), int(last or first) + 1)
        if not span:
            raise UserError(f"--student {student}: {part} runs backwards", f"write {last}-{first}")
        layers += span
    return layers


def own_name(case: OwnCase) -> str:
    """What the run is called: the file and the teacher. ``chats-smollm2-135m-instruct``"""
    name = hub_name(case.teacher)
    teacher = Path(case.teacher).name if name is None else name.repo.partition("/")[2]
    file = Path(case.prompts or case.texts or "").name.partition(".")[0]
    words = f"{file}-{teacher.removesuffix('.gguf')}".lower()
    return re.sub(r"[^a-z0-9._-]+", "-", words)[:64].strip("-._") or "own"


def _put(text: str, section: str, key: str, value: str | None) -> str:
    """The text with ``key = value`` in its section, commented out or not before; None: without it.

    What `own.toml` says beside a value is of that value, and goes with it.
    """
    head, mark, rest = text.partition(f"[{section}]\n")
    body, gap, tail = rest.partition("\n\n")
    line = None if value is None else f"{key} = {value}"
    lines, found = [], False
    for each in body.splitlines():
        if re.match(rf"(# )?{key} = ", each):
            found = True
            lines += [] if line is None else [line]
        else:
            lines.append(each)
    if not found and line is not None:
        lines.append(line)
    return head + mark + "\n".join(lines) + gap + tail
