"""A data file's bytes as text: UTF-8, UTF-16 or UTF-32, with or without a byte-order mark, compressed or not."""

import json
from pathlib import Path

from bitnet_providers.contract import ProviderError

COMPRESSED = (".gz", ".bz2", ".zst")


def text_of(path: Path) -> str:
    """Raises ProviderError where it can't be read, or is no text."""
    try:
        data = _decompressed(path) if path.suffix.lower() in COMPRESSED else path.read_bytes()
    except FileNotFoundError:
        raise ProviderError(f"{path}: there is no such file", "correct the path, relative to the manifest") from None
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())[:200]
        raise ProviderError(
            f"{path}: can't be read: {reason}", "see that it is a whole file, and that you may read it"
        ) from None
    encoding = json.detect_encoding(data)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ProviderError(f"{path}:{line}: not {encoding.upper()[:6]}", "save the file in UTF-8") from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ProviderError(f"{path}:{line}: holds a NUL character, as no text does", "save the file in UTF-8")
    return text


def _decompressed(path: Path) -> bytes:
    import pyarrow as pa  # here: `bitnet plan` is quick without it

    with pa.input_stream(str(path), compression="detect") as stream:
        return bytes(stream.read())
