"""How a configuration record declares a field: default, help text, and whether it names a path."""

from typing import Any

import attrs


def setting(
    default: Any = attrs.NOTHING,
    *,
    help: str,  # the word that a reader of a configuration class expects
    path: bool = False,
    hub: bool = False,
    words: tuple[str, ...] = (),
    later: bool = False,
    validator: Any = None,
    converter: Any = None,
) -> Any:
    """An `attrs.field` with the metadata that the front door reads.

    `help` is shown beside the key; `path` marks a value that is relative to the manifest's own folder, but for `words`,
    which stand for themselves. `hub`: where no such folder is there, it may be a name of the Hugging Face Hub. `later`
    marks one that was added after runs were made: at its default it is in no stage's digest, so that they stay done.
    """
    metadata = {"help": help, "path": path, "hub": hub, "words": words, "later": later}
    return attrs.field(default=default, validator=validator, converter=converter, metadata=metadata)
