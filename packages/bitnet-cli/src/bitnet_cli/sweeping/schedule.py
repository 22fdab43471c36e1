"""Who does what when: a stage that several variants have alike is done by the first of them, and the others wait.

A variant is one task; one that does for others what they have alike is two, so that they need not wait for the rest.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from bitnet_cli.pipeline import fingerprint
from bitnet_cli.stages.stage import Stage
from bitnet_cli.sweeping.variants import Variant

OF_ITS_OWN = ("storage", "dry_run", "report")
"""Stages that each run does itself: they cost nothing, or are about the run."""


@attrs.frozen
class Task:
    """Stages of one variant, for a worker."""

    variant: Variant
    stages: tuple[str, ...]
    shared: tuple[str, ...]
    """Of them those that another variant has done: they are taken from there, and never done again."""


@attrs.frozen
class Keyed:
    """A variant, and what decides each of its stages."""

    variant: Variant
    keys: Mapping[str, str]
    """Stage → digest of everything that decides its result; in the pipeline's order."""
    is_done: bool = False
    """An earlier sweep has done all of it."""


def stage_keys(manifest: object, pipeline: Sequence[Stage], selected: Sequence[Stage]) -> dict[str, str]:
    """Each stage's settings and files, and the keys of the stages that it reads from: equal keys, equal results."""
    makers = {name: stage for stage in pipeline for name in stage.writes}
    digests: dict[Path, str] = {}
    keys: dict[str, str] = {}
    for stage in selected:
        settings, files = fingerprint.manifest_slice(manifest, stage.sections_of(manifest), stage.ignores)  # type: ignore[arg-type]
        for place in files.values():
            digests[place] = digests.get(place) or fingerprint.digest_place(place)
        read = {makers[name].name for name in (*stage.reads, *stage.reads_if_there) if name in makers}
        content = {
            "settings": settings,
            "files": {name: digests[place] for name, place in files.items()},
            "read": {name: keys.get(name) for name in sorted(read)},
        }
        keys[stage.name] = hashlib.sha256(fingerprint.canonical_json(content).encode()).hexdigest()
    return keys


class Schedule:
    """Hands out tasks as soon as what they share is there."""

    def __init__(self, variants: Sequence[Keyed]) -> None:
        self._variants = variants
        self._owners: dict[tuple[str, str], str] = {}
        sharers: dict[tuple[str, str], int] = {}
        for each in variants:
            for pair in _shareable(each):
                self._owners.setdefault(pair, each.variant.name)
                sharers[pair] = sharers.get(pair, 0) + 1
        self._parts = {each.variant.name: self._in_parts(each, sharers) for each in variants}
        """Variant → the stages of its tasks that are still to be handed out."""
        self._under_way: set[str] = set()
        self._done = {pair for each in variants if each.is_done for pair in _shareable(each)}
        self.failed: dict[str, str] = {}
        """Variant → why."""

    def next_task(self) -> Task | None:
        """A task that can be done now; None: there is none before another has ended."""
        for each in self._variants:
            name = each.variant.name
            if name in self._under_way or not self._parts[name]:
                continue
            stages = self._parts[name][0]
            pairs = [pair for pair in _shareable(each) if pair[0] in stages]
            others = [pair for pair in pairs if self._owners[pair] != name]
            lost = next((pair for pair in others if pair not in self._done and self._has_ended(pair)), None)
            if lost is not None:
                self._give_up(name, f"it shares {lost[0]} with {self._owners[lost]}, which failed")
            elif all(pair in self._done for pair in others):
                self._under_way.add(name)
                return Task(each.variant, stages, tuple(stage for stage, _ in others))
        return None

    def ended(self, task: Task, why: str | None) -> None:
        """`why` it failed; None: it is done."""
        name = task.variant.name
        self._under_way.discard(name)
        if why is not None:
            self._give_up(name, why)
            return
        keys = next(each.keys for each in self._variants if each.variant.name == name)
        self._done |= {(stage, keys[stage]) for stage in task.stages}
        self._parts[name] = self._parts[name][1:]

    def put_back(self, task: Task) -> None:
        """Its worker is gone; another may do it."""
        self._under_way.discard(task.variant.name)

    def _in_parts(self, each: Keyed, sharers: Mapping[tuple[str, str], int]) -> list[tuple[str, ...]]:
        """Its stages up to the last one that it does for others, and the rest."""
        if each.is_done:
            return []
        stages = list(each.keys)
        for_others = [
            pair[0] for pair in _shareable(each) if sharers[pair] > 1 and self._owners[pair] == each.variant.name
        ]
        split = stages.index(for_others[-1]) + 1 if for_others else 0
        return [tuple(part) for part in (stages[:split], stages[split:]) if part]

    def _has_ended(self, pair: tuple[str, str]) -> bool:
        return self._owners[pair] in self.failed

    def _give_up(self, name: str, why: str) -> None:
        self.failed[name] = why
        self._parts[name] = []


def _shareable(each: Keyed) -> list[tuple[str, str]]:
    return [(stage, key) for stage, key in each.keys.items() if stage not in OF_ITS_OWN]
