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

from bitnet_core.bitlinear import quantised_once
from bitnet_core.errors import CoreError
from bitnet_core.hardware import autocast, autocast_dtype, best_device, move
from bitnet_core.model.modeling import BitNetKDEForCausalLM
from bitnet_core.runtime.contract import Ending, Piece, Prompt, Sampling, texts
from bitnet_core.runtime.draw import Drawn, drawer, observed
from bitnet_core.runtime.open import model_type
from bitnet_core.runtime.say import say
from bitnet_core.traces.tokenizer import end_ids, id_to_bytes, vocabulary_size
from bitnet_core.training.checkpoint import load_model, read_state


@attrs.frozen(eq=False)
class TorchRuntime:
    """A loaded model with its tokenizer."""

    model: Any
    tokenizer: Any
    end: frozenset[int]
    """Tokens that end an answer."""
    precision: str
    """See `bitnet_core.hardware.autocast`."""

    @property
    def description(self) -> str:
        device = self.model.device
        kind, dtype = "transformers", self.model.dtype
        if isinstance(self.model, BitNetKDEForCausalLM):
            kind, dtype = (
                f"A{self.model.config.activation_bits}, fake quantisation",
                autocast_dtype(self.precision, device),
            )
        name = str(dtype).removeprefix("torch.")
        return f"torch {torch.__version__} on {device.type}, {torch.get_num_threads()} threads, {name}, {kind}"

    @cached_property
    def raw(self) -> list[bytes]:
        """[V] the bytes of each id. Raises CoreError, as `id_to_bytes`."""
        return id_to_bytes(self.tokenizer, self.model.config.vocab_size)

    def stream(self, prompt: Prompt, sampling: Sampling) -> Generator[str, None, Ending]:
        return texts(self.pieces(prompt, sampling))

    def pieces(self, prompt: Prompt, sampling: Sampling) -> Generator[Piece, None, Ending]:
        ids = self.encode(prompt)
        context = int(getattr(self.model.config, "max_position_embeddings", None) or 2**31)
        if not ids:
            raise CoreError("the prompt is empty; write something")
        if len(ids) >= context:
            raise CoreError(f"the prompt has {len(ids):,} tokens, the model's context {context:,}: make it shorter")
        limit = min(sampling.max_new_tokens, context - len(ids))
        read = observed(drawer(sampling, self.model.device), sampling)
        return (
            yield from say(
                self._tokens(ids, limit, read),
                decode=self.decode,
                raw=() if sampling.top_logprobs is None else self.raw,
                end=self.end,
                sampling=sampling,
                prompt_tokens=len(ids),
            )
        )

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a conversation in the chat template, or of a text as it stands. Raises CoreError."""
        if isinstance(prompt, str):
            return [int(id_) for id_ in self.tokenizer(prompt).input_ids]
        if self.tokenizer.chat_template is None:
            raise CoreError(
                "this model's tokenizer has no chat template: put a chat_template.jinja beside it, or let the model go "
                "on with your text as it stands (bitnet generate --plain)"
            )
        from jinja2 import TemplateError

        try:
            made = self.tokenizer.apply_chat_template(
                [dict(message) for message in prompt], add_generation_prompt=True, return_dict=True
            )
        except (TemplateError, ValueError, TypeError) as error:
            raise CoreError(
                f"the model's chat template refuses this conversation ({error}); some take no system message, and most "
                "want the user and the assistant to take turns"
            ) from error
        return [int(id_) for id_ in made["input_ids"]]

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _tokens(self, ids: Sequence[int], count: int, read: Callable[[Tensor], Drawn]) -> Generator[Drawn, None, None]:
        """At most `count` tokens, each drawn by `read` from the logits [V] after all before it."""
        device = self.model.device
        input_ids_BT, cache = torch.tensor([list(ids)], device=device), None
        for _ in range(count):
            with ExitStack() as stack:  # nothing of it may outlast a pause between two tokens
                stack.enter_context(torch.no_grad())
                stack.enter_context(autocast(self.precision, device))
                # Compiling transformers' quantised layers takes longer than an answer.
                stack.enter_context(torch.compiler.set_stance("force_eager"))
                output = self.model(
                    input_ids=input_ids_BT, past_key_values=cache, use_cache=True, logits_to_keep=1, return_dict=True
                )
                drawn = read(output.logits[0, -1].float())
            yield drawn
            input_ids_BT, cache = torch.tensor([[drawn.id]], device=device), output.past_key_values


@contextmanager
def open_torch(folder: Path, bits: int | None = None, precision: str = "auto") -> Iterator[TorchRuntime]:
    """The model in `folder`, on the best device here; see `open_runtime` for `bits` and what is raised.

    `precision` is autocast's, for students; another model computes in the dtype of its file.
    Until the end a student's ternary weights are held dense beside the packed ones, so that no token quantises anew.
    """
    is_student = model_type(folder) == "bitnet_kde"
    tokenizer = _tokenizer(folder)
    model = _student(folder) if is_student else _other(folder)
    if bits is not None and is_student:
        model.set_activation_bits(bits)
    elif bits is not None and bits != (own := _bits_of(folder)):
        raise CoreError(f"{folder}: this model runs at {own} bits, and nothing else; name the checkpoint for {bits}")
    known, names = model.config.vocab_size, vocabulary_size(tokenizer)
    if names > known:
        raise CoreError(
            f"{folder}: the tokenizer has {names} tokens, the model knows {known}: they don't belong together; "
            "put the model's own tokenizer back (tokenizer.json, tokenizer_config.json)"
        )
    move(model, best_device()).eval()
    precision = precision if is_student else "fp32"
    with ExitStack() as stack:
        with autocast(precision, model.device):
            stack.enter_context(quantised_once(model))
        yield TorchRuntime(model, tokenizer, _end(folder, tokenizer, model), precision)


def _end(folder: Path, tokenizer: Any, model: Any) -> frozenset[int]:
    configured = getattr(model.generation_config, "eos_token_id", None)
    more = configured if isinstance(configured, list) else [] if configured is None else [configured]
    return end_ids(folder, tokenizer) | {int(id_) for id_ in more}


def _student(folder: Path) -> BitNetKDEForCausalLM:
    if (folder / "training.json").exists():
        read_state(folder)  # raises for a checkpoint of another version
    return load_model(folder)


def _other(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    except ImportError as error:
        raise CoreError(
            f"{folder}: transformers lacks a package to load it ({_first_line(error)}); "
            "an export of this project needs: pip install accelerate"
        ) from error
    # transformers raises what it likes for damaged files, safetensors its own.
    except Exception as error:
        raise CoreError(f"{folder}: transformers can't load it ({_first_line(error)}); export it again") from error


def _bits_of(folder: Path) -> int:
    """A model in transformers' BitNet form runs at 8 bits, any other without activation quantisation."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return 8 if (config.get("quantization_config") or {}).get("quant_method") == "bitnet" else 16


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise CoreError(
            f"{folder}: no tokenizer beside the weights; copy tokenizer.json and tokenizer_config.json from the model "
            "that it was made from"
        )
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises plain Exception for a malformed file
        raise CoreError(
            f"{folder}: its tokenizer can't be loaded ({_first_line(error)}); copy tokenizer.json and "
            "tokenizer_config.json from the model that it was made from"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
