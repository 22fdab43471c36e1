"""Turns a GGUF file into a Hugging Face folder: dequantised float32 weights, tokenizer, chat template."""

import contextlib
import io
import mmap
import os
import shutil
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from bitnet_providers.contract import ProviderError

_TEMPORARY = ".converting-"
_ABANDONED_S = 3600.0
"""A temporary folder that nobody wrote to for this long was left by a killed process."""


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Convert `gguf` into `folder`, which appears whole or not at all; says so on stderr.

    Two processes may do it at once: the first to finish wins, and both give the same files. Raises ProviderError.
    """
    started = time.monotonic()
    _say(f"converting {gguf.name} once, into {folder} (seconds for a small model) ...")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder.parent)
        partial = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=folder.parent))
    except OSError as error:
        raise ProviderError(
            f"the cache folder {folder.parent} can't be written ({error.strerror})",
            "set the environment variable BITNET_CACHE to a folder that can",
        ) from None
    try:
        _convert(gguf, partial)
        _flush(partial)
        _move(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _say(f"converted in {time.monotonic() - started:.0f} s")


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        # The dequantiser's own bar goes to stderr whatever the setting; failures are exceptions.
        with no_progress_bars(), contextlib.redirect_stderr(io.StringIO()), read_once():
            # Without dequantize=True the model could not be saved.
            model = AutoModelForCausalLM.from_pretrained(
                str(gguf.parent),
                gguf_file=gguf.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
            )
            tokenizer = AutoTokenizer.from_pretrained(
                str(gguf.parent), gguf_file=gguf.name, local_files_only=True, trust_remote_code=False
            )
            _restore_pre_tokenizer(gguf, tokenizer)
            tokenizer.save_pretrained(folder)
            model.save_pretrained(folder)
    except OSError as error:
        if error.errno is None:  # transformers' own "this is not a model" is an OSError as well
            raise _unreadable(gguf, error) from error
        raise ProviderError(
            f"{folder.parent} can't take the converted model ({error.strerror}; 4 bytes a parameter are needed)",
            "free some space, or set the environment variable BITNET_CACHE to a folder on a bigger disk",
        ) from error
    except ImportError as error:
        raise ProviderError(f"converting {gguf} needs {error.name}", "pip install 'bitnet-providers[local]'") from error
    except Exception as error:  # a damaged file can raise anything, numpy's errors among it
        raise _unreadable(gguf, error) from error


def _unreadable(gguf: Path, error: Exception) -> ProviderError:
    reason = " ".join(str(error).split())[:300]
    return ProviderError(
        f"transformers can't convert {gguf}: {type(error).__name__}: {reason}; "
        "if the file is whole, its architecture is not supported",
        "use the model's Hugging Face folder instead",
    )


def _restore_pre_tokenizer(gguf: Path, tokenizer: Any) -> None:
    """Give a "smollm" vocabulary its digit splitting back, which transformers' converter leaves out.

    llama.cpp and the published tokenizer.json cut the text at every digit before the byte-level regex runs. Without it
    "\\n\\n1." becomes other tokens than those that the model was trained on.
    """
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    if _pre_tokenizer_name(gguf) == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
            [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
        )


def _pre_tokenizer_name(gguf: Path) -> str | None:
    """The string under ``tokenizer.ggml.pre``, found by its bytes: gguf's reader takes seconds over a vocabulary.

    After a key come its type (uint32, 8 is a string), then the string's length (uint64) and its bytes.
    """
    key = b"tokenizer.ggml.pre"
    with gguf.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = content.find(len(key).to_bytes(8, "little") + key + (8).to_bytes(4, "little"))
        if found < 0:
            return None
        start = found + 8 + len(key) + 4
        length = int.from_bytes(content[start : start + 8], "little")
        return content[start + 8 : start + 8 + length].decode("utf-8", "replace")


def _flush(folder: Path) -> None:
    """Bring every file to the disk before the folder gets its name."""
    for file in folder.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


def _move(partial: Path, folder: Path) -> None:
    try:
        partial.chmod(0o755)  # mkdtemp's folders are closed to other users of a shared cache
        partial.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was first, with the same files
            raise


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob(f"{_TEMPORARY}*"):
        with contextlib.suppress(OSError):
            newest = max(file.stat().st_mtime for file in [folder, *folder.iterdir()])
            if time.time() - newest > _ABANDONED_S:
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def no_progress_bars() -> Iterator[None]:
    """transformers' bars are off inside: they would mix with the run's own."""
    from transformers.utils import logging

    were_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_on:
            logging.enable_progress_bar()


def _say(text: str) -> None:
    print(f"teacher: {text}", file=sys.stderr, flush=True)


_STRING, _ARRAY = 8, 9
"""Of GGUF's value types."""
_LOCK = threading.Lock()
"""One conversion at a time: what two threads replace would not all come back."""


@contextlib.contextmanager
def read_once() -> Iterator[None]:
    """Inside, transformers reads a GGUF file once and quickly; what it reads stays the same.

    It opens a file three times (configuration, weights, tokenizer); gguf slices a memory map for each of some 100,000
    entries of a vocabulary; and the table of tensor names is built anew for each of the model's modules: nine tenths of
    a conversion's time. Where a later version of either looks things up elsewhere, it is only slow again.
    """
    import gguf
    from transformers import modeling_gguf_pytorch_utils as loading

    parse: Any = getattr(loading, "_gguf_parse_value", None)

    class QuickReader(gguf.GGUFReader):
        """Arrays are read in one go, into plain values in place of a slice of the file for each."""

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, Any, list[int], Any]:
            if raw_type == _ARRAY and self.endianess == gguf.GGUFEndian.LITTLE:
                data = self.data.data
                kind, count = struct.unpack_from("<IQ", data, orig_offs)
                number = self.gguf_scalar_to_np.get(kind)
                if kind == _STRING or number is not None:
                    start = orig_offs + 12
                    values, end = (
                        _strings(data, start, count) if number is None else _numbers(data, start, count, number)
                    )
                    types = [gguf.GGUFValueType(_ARRAY), *[gguf.GGUFValueType(kind)][:count]]
                    return end - orig_offs, values, list(range(count)), types
            return super()._get_field_parts(orig_offs, raw_type)

    def value(part: Any, types: Any) -> Any:
        return parse(part, types) if isinstance(part, np.ndarray) else part

    with (
        _LOCK,
        mock.patch.object(gguf, "GGUFReader", cache(QuickReader)),
        mock.patch.object(gguf, "get_tensor_name_map", cache(gguf.get_tensor_name_map)),
        mock.patch.object(loading, "_gguf_parse_value", value, create=True),
    ):
        yield


def _numbers(data: memoryview, start: int, count: int, number: Any) -> tuple[list[Any], int]:
    array = np.frombuffer(data, np.dtype(number).newbyteorder("<"), count, start)
    return array.tolist(), start + array.nbytes


def _strings(data: memoryview, start: int, count: int) -> tuple[list[str], int]:
    values = []
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", data, start)
        end = start + 8 + length
        values.append(str(data[start + 8 : end], "utf-8"))
        start = end
    return values, start
