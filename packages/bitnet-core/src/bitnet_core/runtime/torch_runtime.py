"""A folder of weights in torch: our students with fake quantisation, other models as transformers runs them.

Shapes: B = 1, T tokens, V vocabulary.
"""

import json
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bitnet_core.errors import CoreError, in_one_line, own_code_refused
from bitnet_core.hardware import autocast, autocast_dtype, best_device, move
from bitnet_core.model.end_tokens import configured_ends
from bitnet_core.model.find_layers_and_head import activation_bits, head, set_activation_bits
from bitnet_core.model.kv_cache import cache_of, named
from bitnet_core.model.progress_bars import no_progress_bars
from bitnet_core.model.read_checkpoint import holds_student, load_model, read_state
from bitnet_core.runtime.contract import Ending, Piece, Prompt, Sampling, texts
from bitnet_core.runtime.encode_prompt import decode, encode
from bitnet_core.runtime.sampling import Drawn
from bitnet_core.runtime.stream_answer import stream_answer
from bitnet_core.ternary.bitlinear import quantised_once
from bitnet_core.traces.tokenizer import end_tokens, id_to_bytes, vocabulary_size
from bitnet_core.weight_format import check_sizes


@attrs.define
class _Seen:
    """What `logits` was asked last."""

    ids: list[int]
    cache: Any


@attrs.frozen(eq=False)
class TorchRuntime:
    """A loaded model with its tokenizer."""

    model: Any
    tokenizer: Any
    end: frozenset[int]
    """Tokens that end an answer."""
    precision: str
    """See `bitnet_core.hardware.autocast`."""
    is_student: bool = False
    _seen: "_Seen" = attrs.field(factory=lambda: _Seen([], None), init=False)

    @property
    def description(self) -> str:
        device = self.model.device
        kind, dtype = "transformers", self.model.dtype
        if self.is_student:
            kind, dtype = (
                f"A{activation_bits(self.model)}, fake quantisation",
                autocast_dtype(self.precision, device),
            )
        name = str(dtype).removeprefix("torch.")
        return f"torch {torch.__version__} on {device.type}, {torch.get_num_threads()} threads, {name}, {kind}"

    @property
    def context(self) -> int:
        """Tokens at most, prompt and answer together."""
        return int(getattr(self.model.config, "max_position_embeddings", None) or 2**31)

    @cached_property
    def raw(self) -> list[bytes]:
        """[V] the bytes of each id. Raises CoreError, as `id_to_bytes`."""
        return id_to_bytes(self.tokenizer, self.model.config.vocab_size)

    def stream(self, prompt: Prompt, sampling: Sampling) -> Generator[str, None, Ending]:
        return texts(self.pieces(prompt, sampling))

    def pieces(self, prompt: Prompt, sampling: Sampling) -> Generator[Piece, None, Ending]:
        return stream_answer(self, self._tokens, prompt, sampling, self.model.device)

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a conversation in the chat template, or of a text as it stands. Raises CoreError."""
        return encode(self.tokenizer, prompt)

    def decode(self, ids: Sequence[int]) -> str:
        return decode(self.tokenizer, ids)

    def logits(self, ids: Sequence[int], last: int | None = None) -> Tensor:
        """[`last` or T, V] float32 on the CPU: row t says what follows ``ids[: t + 1]``.

        Goes on from the call before where `ids` goes on from its; else everything is computed.
        """
        count, seen = len(ids) if last is None else last, self._seen
        known, cache = seen.ids, seen.cache
        seen.ids, seen.cache = [], None  # what an interrupted pass leaves in a cache is nobody's
        if list(ids[: len(known)]) != known or len(known) > len(ids) - count:
            known, cache = [], None
        output = self._forward(list(ids[len(known) :]), cache, count)
        seen.ids, seen.cache = list(ids), cache_of(output)
        return output.logits[0].float().cpu()

    def _tokens(self, ids: Sequence[int], count: int, read: Callable[[Tensor], Drawn]) -> Generator[Drawn, None, None]:
        """At most `count` tokens, each drawn by `read` from the logits [V] after all before it."""
        new, cache = list(ids), None
        for _ in range(count):
            output = self._forward(new, cache, 1)
            drawn = read(output.logits[0, -1].float())
            yield drawn
            new, cache = [drawn.id], cache_of(output)

    def _forward(self, ids: list[int], cache: Any, keep: int) -> Any:
        """transformers' output for `ids` after what is in the cache, with the logits of the last `keep` positions."""
        with ExitStack() as stack:  # nothing of it may outlast a pause between two tokens
            stack.enter_context(torch.no_grad())
            stack.enter_context(autocast(self.precision, self.model.device))
            # Compiling transformers' quantised layers takes longer than an answer.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            return self.model(
                input_ids=torch.tensor([ids], device=self.model.device),
                use_cache=True,
                logits_to_keep=keep,
                return_dict=True,
                **named(cache),
            )


@contextmanager
def open_torch(folder: Path, bits: int | None = None, precision: str = "auto") -> Iterator[TorchRuntime]:
    """The model in `folder`, on the best device here; see `open_runtime` for `bits` and what is raised.

    `precision` is autocast's, for students; another model computes in the dtype of its file.
    Until the end a student's ternary weights are held dense beside the packed ones, and its head in autocast's dtype:
    no token quantises or casts anew.
    """
    is_student = holds_student(folder)
    tokenizer = read_tokenizer(folder)
    model = _student(folder) if is_student else _other(folder)
    if bits is not None and is_student:
        set_activation_bits(model, bits)
    elif bits is not None and bits != (own := _bits_of(folder)):
        raise CoreError(
            f"{folder}: this model runs at {own} bits, and nothing else", f"name the checkpoint to run it at {bits}"
        )
    check_vocabulary(folder, tokenizer, model.config.vocab_size)
    move(model, best_device()).eval()
    precision = precision if is_student else "fp32"
    if is_student:
        _cast_head(model, autocast_dtype(precision, model.device))
    with ExitStack() as stack:
        with autocast(precision, model.device):
            stack.enter_context(quantised_once(model))
        ends = end_tokens(folder, tokenizer, configured_ends(model))
        yield TorchRuntime(model, tokenizer, frozenset(ends), precision, is_student)


def _student(folder: Path) -> PreTrainedModel:
    if (folder / "training.json").exists():
        read_state(folder)  # raises for a checkpoint of another version
    return load_model(folder)


def _cast_head(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """As autocast would for each token, which takes longer than all layers of a small model."""
    weight_VD = head(model).weight.detach().to(dtype)
    outputs, inputs = weight_VD.shape
    cast = torch.nn.Linear(inputs, outputs, bias=False, device="meta")
    cast.weight = torch.nn.Parameter(weight_VD, requires_grad=False)
    model.set_output_embeddings(cast)


@no_progress_bars()
def _other(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    check_sizes(folder)
    try:
        return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except ImportError as error:
        raise CoreError(
            f"{folder}: transformers lacks a package to load it ({in_one_line(error)})",
            "install the package (an export of this project needs: pip install accelerate)",
        ) from error
    # transformers raises what it likes for damaged files, safetensors its own.
    except Exception as error:
        raise own_code_refused(folder, error) or CoreError(
            f"{folder}: transformers can't load it ({in_one_line(error)})", "export it again"
        ) from error


def _bits_of(folder: Path) -> int:
    """A model in transformers' BitNet form runs at 8 bits, any other without activation quantisation."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return 8 if (config.get("quantization_config") or {}).get("quant_method") == "bitnet" else 16


def read_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise CoreError(
            f"{folder}: no tokenizer beside the weights",
            "copy tokenizer.json and tokenizer_config.json from the model that it was made from",
        )
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises plain Exception for a malformed file
        raise own_code_refused(f"{folder}: its tokenizer", error) or CoreError(
            f"{folder}: its tokenizer can't be loaded ({in_one_line(error)})",
            "copy tokenizer.json and tokenizer_config.json from the model that it was made from",
        ) from error


def check_vocabulary(folder: Path, tokenizer: Any, known: int) -> None:
    if (names := vocabulary_size(tokenizer)) > known:
        raise CoreError(
            f"{folder}: the tokenizer has {names} tokens, the model knows {known}: they don't belong together",
            "put the model's own tokenizer back (tokenizer.json, tokenizer_config.json)",
        )
