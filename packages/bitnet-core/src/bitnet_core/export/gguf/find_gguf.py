"""The GGUF file of a checkpoint: the run's export where it is of this very student, else a new one."""

from pathlib import Path

from bitnet_core.config.export import GGUFOptions, GGUFType
from bitnet_core.export.compare_codes import compare_gguf
from bitnet_core.export.gguf.write import TERNARY_TYPES, file_name, write_files
from bitnet_core.export.load_student import load_student
from bitnet_core.model.modeling import BitNetKDEForCausalLM
from bitnet_core.model.read_checkpoint import load_model
from bitnet_core.model.start_student import llama_shaped


def gguf_of(checkpoint: Path, exports: Path | None, work: Path) -> Path:
    """The file of `checkpoint`, in `exports` or written into `work`: TQ2_0, or F16 where the student isn't ternary.

    An export counts if every code and row scale in it is the checkpoint's; by the names alone it may be of an older
    training. Raises CoreError for a student that GGUF can't hold.
    """
    model = llama_shaped(load_model(checkpoint), "a GGUF file")
    type_: GGUFType = "tq2_0" if model.config.quantise_weights else "f16"
    if exports is not None and model.config.quantise_weights:
        for file in (exports / file_name(each) for each in TERNARY_TYPES):
            if file.is_file() and _is_of(model, file):
                return file
    del model
    write_files(load_student(checkpoint), GGUFOptions(types=(type_,)), work)
    return work / file_name(type_)


def _is_of(model: BitNetKDEForCausalLM, file: Path) -> bool:
    try:
        found = compare_gguf(model, file)
    except (ValueError, KeyError, IndexError, OSError, RuntimeError):
        return False  # damaged, or of another shape
    return not found.differing_codes and not found.differing_scales
