"""The resolved manifest, and what stages were done with otherwise."""

import json
from collections.abc import Iterator
from typing import Any

from bitnet_cli.report.blocks import Block, Code, Heading, Table, Text
from bitnet_cli.report.read_run import RunRecord


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
                yield name, stage, _setting(value), _setting(now)


def _setting(value: Any) -> str:
    return "unset" if value is None else json.dumps(value, ensure_ascii=False)
