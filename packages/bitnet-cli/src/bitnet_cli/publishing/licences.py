"""What a student comes from (its teacher, the checkpoint that it started as), their licences, and the cards' terms."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs
import tomli

from bitnet_cli.report.blocks import Block, Bullets, Heading, Text
from bitnet_cli.report.read_run import RunRecord
from bitnet_providers.hub.names import HubName, hub_name
from bitnet_providers.teachers.local.options import EMBEDDED_MODEL, EMBEDDED_ON_HUB

TEACHER = "teacher"


@attrs.frozen(kw_only=True)
class Parent:
    """A model that the student owes something to."""

    title: str
    """What it is called; never a path of this machine."""
    hub: HubName | None = None
    """Its name on the Hub; None: it isn't known to be there."""
    licence: Mapping[str, str] = attrs.field(factory=dict)
    """``license``, ``license_name``, ``license_link`` as its card has them; empty: not known."""
    is_service: bool = False
    """It answered through an API, whose terms count as well."""


@attrs.frozen(kw_only=True)
class Origin:
    """`teacher` None: the traces were imported. `start` None: random weights."""

    teacher: Parent | None
    start: Parent | None

    @property
    def base_model(self) -> HubName | None:
        """For a card: what the weights started as, else what they learned from."""
        for parent in (self.start, self.teacher):
            if parent is not None:
                return parent.hub
        return None

    def parents(self) -> tuple[Parent, ...]:
        """Each once, the teacher first."""
        start = None if self.start == self.teacher else self.start
        return tuple(each for each in (self.teacher, start) if each is not None)

    @property
    def licence(self) -> Mapping[str, str]:
        """That of the weights which the student started as; empty: it started from none, or it isn't known."""
        return {} if self.start is None else self.start.licence


def read_origin(run: RunRecord, base_model: str | None, ask: Callable[[HubName], Mapping[str, str]]) -> Origin:
    """From the run's resolved manifest. `base_model` names on the Hub what the manifest has as a folder.

    ask: a model's licence, as the Hub states it; empty where it can't be had.
    """
    manifest = tomli.loads(run.manifest_toml)
    section, student = manifest.get("teacher"), manifest.get("student") or {}
    first = str(student.get("init_from") or "")
    given = None if base_model is None else HubName(base_model)
    teacher = None if section is None else _teacher(section, given if first in ("", TEACHER) else None, ask)
    start = teacher if first == TEACHER else _parent(first, given, ask) if first else None
    return Origin(teacher=teacher, start=start)


def _teacher(section: Mapping[str, Any], given: HubName | None, ask: Callable[[HubName], Mapping[str, str]]) -> Parent:
    kind, model = str(section.get("kind", "")), str(section.get("model") or "")
    if kind == "local":
        return _parent(model, given, ask)
    return Parent(title=f"{model or 'a model'} by the API {kind}", is_service=True)


def _parent(model: str, given: HubName | None, ask: Callable[[HubName], Mapping[str, str]]) -> Parent:
    name = given or (HubName(EMBEDDED_ON_HUB) if model == EMBEDDED_MODEL else hub_name(model))
    if name is None:
        return Parent(title=model.replace("\\", "/").rstrip("/").rpartition("/")[2] or "a model of its maker's own")
    return Parent(title=name.repo, hub=name, licence=ask(name))


def terms_blocks(origin: Origin, what: str) -> Iterator[Block]:
    """`what` begins the sentence: "This model"."""
    yield Heading("Terms of use")
    names = " and ".join(each.title for each in origin.parents()) or "its teacher"
    yield Text(
        f"{what} holds what was learned from {names}. Before you use or share it, read the terms of that model and of "
        "the service that served it: some forbid training other models on their output, some ask for their name or "
        "licence to be carried on."
    )
    if known := tuple(_terms(each) for each in origin.parents()):
        yield Bullets(known)


def _terms(parent: Parent) -> str:
    if parent.is_service:
        return f"{parent.title}: the terms of that service."
    if not parent.licence:
        return f"{parent.title}: its licence is not stated here; see its makers' page."
    words = [parent.licence.get("license_name") or parent.licence.get("license", "")]
    if link := parent.licence.get("license_link"):
        words.append(link)
    return f"{parent.title}: {', '.join(words)}, as its card on the Hub says."
