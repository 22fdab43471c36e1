"""The runtime ``packed``: a student's two-bit weights in Triton on a GPU, in C++ on the CPU, or in torch where there is
no compiler.

Shapes: T tokens, V vocabulary.
"""

import logging
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor

from bitnet_core.errors import CoreError
from bitnet_core.kernels.compile import NoCompilerError
from bitnet_core.model.read_checkpoint import model_type
from bitnet_core.runtime.contract import Ending, HeadKind, Piece, Prompt, Sampling, texts
from bitnet_core.runtime.encode_prompt import decode, encode
from bitnet_core.runtime.packed.cpu import CpuEngine
from bitnet_core.runtime.packed.load_weights import packed_weights
from bitnet_core.runtime.sampling import Drawn
from bitnet_core.runtime.stream_answer import stream_answer
from bitnet_core.runtime.torch_runtime import TorchRuntime, check_vocabulary, open_torch, read_tokenizer
from bitnet_core.traces.tokenizer import end_tokens, id_to_bytes

if TYPE_CHECKING:
    from bitnet_core.runtime.packed.cuda import CudaEngine

CONTEXT = 4096
"""Tokens of a conversation at most, as in llama.cpp's runtime."""
_log = logging.getLogger(__name__)


@attrs.frozen(eq=False)
class PackedRuntime:
    """A loaded student with its tokenizer."""

    engine: "CpuEngine | CudaEngine"
    tokenizer: Any
    end: frozenset[int]
    """Tokens that end an answer."""

    @property
    def description(self) -> str:
        device = self.engine.device.type
        where = f"cpu, {torch.get_num_threads()} threads" if device == "cpu" else device
        return f"packed, {self.engine.instruction_set} on {where}, A{self.engine.bits}, {self.engine.head} head"

    @property
    def context(self) -> int:
        """Tokens at most, prompt and answer together."""
        return self.engine.context

    @cached_property
    def raw(self) -> list[bytes]:
        """[V] the bytes of each id. Raises CoreError, as `id_to_bytes`."""
        return id_to_bytes(self.tokenizer, self.engine.vocabulary)

    def stream(self, prompt: Prompt, sampling: Sampling) -> Generator[str, None, Ending]:
        return texts(self.pieces(prompt, sampling))

    def pieces(self, prompt: Prompt, sampling: Sampling) -> Generator[Piece, None, Ending]:
        return stream_answer(self, self._tokens, prompt, sampling, self.engine.device)

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a conversation in the chat template, or of a text as it stands. Raises CoreError."""
        return encode(self.tokenizer, prompt)

    def decode(self, ids: Sequence[int]) -> str:
        return decode(self.tokenizer, ids)

    def logits(self, ids: Sequence[int], last: int | None = None) -> Tensor:
        """[`last` or T, V] float32: row t says what follows ``ids[: t + 1]``. See `CpuEngine.logits`."""
        return self.engine.logits(ids, last).cpu()

    def _tokens(self, ids: list[int], count: int, read: Callable[[Tensor], Drawn]) -> Generator[Drawn, None, None]:
        said = list(ids)
        for _ in range(count):
            drawn = read(self.engine.logits(said, last=1)[0])
            yield drawn
            said.append(drawn.id)


@contextmanager
def open_packed(
    folder: Path, bits: int | None = None, *, head: HeadKind = "int8", context: int = CONTEXT
) -> Iterator[PackedRuntime | TorchRuntime]:
    """The student in `folder` (a checkpoint or a ``packed`` export), packed; see `open_runtime` for what is raised.

    `head` is how the language model's head is kept. Where there is a CUDA GPU it runs there, with the head in bfloat16,
    unless the environment variable ``BITNET_CPU`` names an instruction set of the CPU's or there is no Triton. Where
    the C++ can't be compiled the log says why, and torch runs the same weights, in float32.
    """
    if (found := model_type(folder)) != "bitnet_kde":
        raise CoreError(
            f"{folder}: a {found} model, and the runtime packed is for this project's students", "use the runtime torch"
        )
    tokenizer = read_tokenizer(folder)
    end = frozenset(end_tokens(folder, tokenizer))
    if _has_gpu():
        from bitnet_core.runtime.packed.cuda import CudaEngine, packed_model

        model = packed_model(folder)
        check_vocabulary(folder, tokenizer, model.config.vocab_size)
        yield PackedRuntime(CudaEngine(model, bits=bits, context=context), tokenizer, end)
        return
    weights = packed_weights(folder)
    check_vocabulary(folder, tokenizer, weights.config.vocab_size)
    try:
        engine = CpuEngine(weights, bits=bits, head=head, context=context)
    except NoCompilerError as error:
        _log.warning("the runtime packed falls back to torch, which is slower: %s", error)
    else:
        yield PackedRuntime(engine, tokenizer, end)
        return
    del weights  # torch loads its own
    with open_torch(folder, bits, precision="fp32") as runtime:
        yield runtime


def _has_gpu() -> bool:
    if os.environ.get("BITNET_CPU") or not torch.cuda.is_available():
        return False
    if find_spec("triton") is None:  # torch brings it on Linux only
        _log.warning(
            "the runtime packed runs on the CPU: there is no Triton (pip install triton; Windows: triton-windows)"
        )
        return False
    return True
