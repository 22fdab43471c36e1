"""What all steps of a calibration work with: the model, its documents, and where its files lie."""

from collections.abc import Sequence
from pathlib import Path

import attrs
import torch

from bitnet_core.calibration.documents import Batch
from bitnet_core.model.start_layer_by_layer import LayeredStart
from bitnet_core.model.start_whole_model import WholeStart

MODELS = ("student", "teacher")


@attrs.frozen(eq=False)
class Work:
    """The model and its documents while layers are made."""

    start: LayeredStart | WholeStart
    batches: Sequence[Batch]
    folder: Path
    device: torch.device
    dtype: torch.dtype
    """Of the groups' inputs, and of the products."""
    precision: str

    @property
    def tokens(self) -> int:
        return self.batches[-1].rows.stop

    def before(self, layer: int) -> Path:
        """The folder with both streams before a layer."""
        return self.folder / f"layer_{layer}"
