"""Going on from the newest checkpoint that is whole."""

import shutil
from pathlib import Path

import attrs
from torch import Tensor

from bitnet_core.errors import CoreError
from bitnet_core.model.modeling import BitNetKDEForCausalLM
from bitnet_core.training.checkpoint import (
    TrainingState,
    checkpoints,
    load_model,
    load_moments,
    read_state,
    remove_partials,
)


@attrs.frozen(eq=False)
class Resumed:
    """A checkpoint in memory."""

    name: str
    model: BitNetKDEForCausalLM
    state: TrainingState
    moments: dict[str, Tensor]
    damaged: list[str]
    """What was wrong with newer checkpoints; they are kept beside it as ``step_N.damaged``."""


def resume(folder: Path, fingerprint: str) -> Resumed | None:
    """The newest whole checkpoint of this very training, None without any; what belongs to another one is removed.

    Raises CoreError where there are checkpoints of it and all are damaged.
    """
    remove_partials(folder)
    faults: dict[Path, CoreError] = {}
    for checkpoint in reversed(checkpoints(folder)):
        try:
            state = read_state(checkpoint)
            if state.fingerprint != fingerprint:
                shutil.rmtree(checkpoint)
                (folder / f"{checkpoint.name}_health.json").unlink(missing_ok=True)
                continue
            model = load_model(checkpoint)
            moments = load_moments(checkpoint, model)
        except CoreError as error:
            faults[checkpoint] = error
            continue
        for bad in faults:
            aside = bad.with_name(f"{bad.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            bad.rename(aside)
        return Resumed(checkpoint.name, model, state, moments, [str(error) for error in faults.values()])
    if faults:
        raise next(iter(faults.values()))
    return None
