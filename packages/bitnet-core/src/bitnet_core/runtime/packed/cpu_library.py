"""``ternary_cpu.cpp``, compiled and loaded."""

import ctypes
from pathlib import Path

from bitnet_core.kernels.compile import EXPONENTIAL, chosen_instruction_set, compiled, loaded

SOURCE = Path(__file__).with_name("ternary_cpu.cpp")
HEADERS = (SOURCE.with_name("ternary_dot.h"), EXPONENTIAL)


def load_library(instruction_set: str | None = None) -> tuple[ctypes.CDLL, str]:
    """The library and the instruction set that it was compiled for (see `chosen_instruction_set`).

    Raises NoCompilerError where it isn't compiled yet and can't be, or can't be loaded; CoreError for an instruction
    set that this machine hasn't got.
    """
    chosen = chosen_instruction_set(instruction_set)
    library = loaded(compiled(SOURCE, chosen, HEADERS))
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    library.bitnet_forward.argtypes = [pointer, pointer, number, number, number]
    library.bitnet_logits.argtypes = [pointer, pointer, number, number, pointer]
    library.bitnet_linear.argtypes = [pointer, pointer, number, number, number, pointer]
    for function in (library.bitnet_forward, library.bitnet_logits, library.bitnet_linear):
        function.restype = None
    return library, chosen
