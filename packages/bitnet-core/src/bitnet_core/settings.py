"""Helpers for the frozen records that a manifest table becomes. Importing this loads no torch."""

from typing import Any

import attrs


def setting(
    default: Any = attrs.NOTHING,
    *,
    help: str,  # the word that a reader of a configuration class expects
    path: bool = False,
    hub: bool = False,
    later: bool = False,
    validator: Any = None,
) -> Any:
    """An `attrs.field` with the metadata that the front door reads.

    `help` is shown beside the key; `path` marks a value that is relative to the manifest's own folder; with `hub` it
    may be a name of the Hugging Face Hub (``ORG/NAME@REVISION``) where no such folder is there. `later` marks one that
    was added after runs were made: at its default, which does what was done without it, it is in no stage's digest, so
    that those runs stay done.
    """
    metadata = {"help": help, "path": path, "hub": hub, "later": later}
    return attrs.field(default=default, validator=validator, metadata=metadata)


positive = attrs.validators.gt(0)


not_negative = attrs.validators.ge(0)
