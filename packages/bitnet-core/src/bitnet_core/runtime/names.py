"""The runtimes' names, as `evaluate.runtime`, `open_runtime` and ``--runtime`` take them. Importing this loads nothing.

`bitnet_core.runtime.kinds` has the record of each.
"""

from typing import Literal, get_args

RuntimeName = Literal["torch", "llamacpp", "packed"]
RUNTIME_NAMES: tuple[RuntimeName, ...] = get_args(RuntimeName)
