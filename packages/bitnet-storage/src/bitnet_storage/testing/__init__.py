"""The conformance kit for authors of stores: subclass `StoreConformance`, give it a fixture `objects`.

Needs ``bitnet-storage[testing]``; docs/write-a-store.md shows it in use.
"""

from bitnet_storage.testing.conformance import StoreConformance
from bitnet_storage.testing.faults import Cut, FaultyObjects, Killed

__all__ = ["Cut", "FaultyObjects", "Killed", "StoreConformance"]
