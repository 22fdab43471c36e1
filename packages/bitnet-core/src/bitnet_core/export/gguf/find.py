"""The GGUF file of a checkpoint: the run's export where it is of this very student, else a new one."""

from pathlib import Path

from bitnet_core.config.export import GGUFOptions, GGUFType
from bitnet_core.export.compare_codes import compare_gguf
from bitnet_core.export.gguf.write import file_name, write_files
from bitnet_core.export.student import load_student
from bitnet_core.model.checkpoint import load_model


def gguf_of(checkpoint: Path, exports: Path | None, work: Path) -> Path:
    """The file of `checkpoint`, in `exports` or written into `work`: TQ2_0, or F16 where the student isn't ternary.

    An export counts if every code and row scale in it is the checkpoint's; by the names alone it may be of an older
    training. Raises CoreError for a student that GGUF can't hold.
    """
    model = load_model(checkpoint)
    type_: GGUFType = "tq2_0" if model.config.quantise_weights else "f16"
    if exports is not None and model.config.quantise_weights and (exports / file_name(type_)).is_file():
        try:
            found = compare_gguf(model, exports / file_name(type_))
            if not found.differing_codes and not found.differing_scales:
                return exports / file_name(type_)
        except (ValueError, KeyError, IndexError, OSError, RuntimeError):
            pass  # damaged, or of another shape: not this student's
    del model
    write_files(load_student(checkpoint), GGUFOptions(types=(type_,)), work)
    return work / file_name(type_)
