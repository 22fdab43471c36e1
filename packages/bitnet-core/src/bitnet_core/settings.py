"""Helpers for the frozen records that a manifest table becomes. Importing this loads no torch."""

from typing import Any

import attrs


def setting(
    default: Any = attrs.NOTHING,
    *,
    help: str,  # the word that a reader of a configuration class expects
    path: bool = False,
    hub: bool = False,
    validator: Any = None,
) -> Any:
    """An `attrs.field` with the metadata that the front door reads.

    `help` is shown beside the key; `path` marks a value that is relative to the manifest's own folder; with `hub` it
    may be a name of the Hugging Face Hub (``ORG/NAME@REVISION``) where no such folder is there.
    """
    return attrs.field(default=default, validator=validator, metadata={"help": help, "path": path, "hub": hub})


positive = attrs.validators.gt(0)


not_negative = attrs.validators.ge(0)
