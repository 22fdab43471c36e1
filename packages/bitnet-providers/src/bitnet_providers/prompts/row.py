"""What all readers of data files give."""

from collections.abc import Collection
from typing import Any

import attrs


@attrs.frozen
class Row:
    """One row of a file."""

    place: str
    """For people: ``line 3``, ``row 3``."""
    id: str
    """What it is called where it says nothing itself."""
    value: Any
    """A mapping by column, a string, or a ProviderError: why it can't be read."""
    unread: Collection[str] = ()
    """Columns that its table has beside."""
