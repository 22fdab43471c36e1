"""A loaded model as lm-evaluation-harness wants it. T tokens, V vocabulary."""

from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from bitnet_core.benchmarks.contract import NotMeasured
from bitnet_core.runtime.contract import Runtime, Sampling

LONGEST = 256
"""New tokens of an answer whose task doesn't say; the harness's own default."""


LONGEST_TEXT = 4096
"""Tokens of a text at most, in every runtime alike: what the one with the shortest context takes."""


def longest_text(runtime: Any) -> int:
    return min(int(getattr(runtime, "context", LONGEST_TEXT)), LONGEST_TEXT)


def language_model(runtime: Runtime, batch_size: int) -> Any:
    """The harness's own model for what transformers runs, in batches; else one that asks the runtime."""
    model, tokenizer = getattr(runtime, "model", None), getattr(runtime, "tokenizer", None)
    if isinstance(model, torch.nn.Module) and tokenizer is not None:
        from lm_eval.models.huggingface import HFLM

        from bitnet_core.hardware import autocast_dtype

        dtype = autocast_dtype(getattr(runtime, "precision", "fp32"), torch.device(str(model.device)))
        mixed = None if dtype is torch.float32 else dtype
        return HFLM(
            pretrained=model,
            tokenizer=tokenizer,
            backend="causal",
            batch_size=batch_size,
            max_length=longest_text(runtime),
            mixed_precision_dtype=mixed,
        )
    return RuntimeLM(runtime)


class RuntimeLM(TemplateLM):
    """One request after the other, in a runtime of this project; the harness asks for a class.

    Text is what every runtime gives; log-likelihoods need one that has ``tokenizer`` and ``logits``.
    """

    def __init__(self, runtime: Any) -> None:
        super().__init__()
        self.runtime = runtime

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        return [self._answer(*request.args) for request in requests]

    def _answer(self, context: str, options: dict[str, Any]) -> str:
        until = options.get("until") or []
        stops = [until] if isinstance(until, str) else [stop for stop in until if stop]
        sampled = bool(options.get("do_sample", False))
        sampling = Sampling(
            max_new_tokens=int(options.get("max_gen_toks", LONGEST)),
            temperature=float(options.get("temperature", 1.0)) if sampled else 0.0,
            top_p=float(options.get("top_p", 1.0)),
        )
        text = ""
        stream = self.runtime.stream(context, sampling)
        try:
            for piece in stream:
                text += piece
                ends = [place for stop in stops if (place := text.find(stop)) >= 0]
                if ends:
                    return text[: min(ends)]
        finally:
            stream.close()
        return text

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        self._needs_logits()
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm)
        return found

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        return [self._likelihood(context, continuation) for _, context, continuation in requests]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        self._needs_logits()
        found = []
        for request in requests:
            ids = self.tok_encode(request.args[0])
            # The harness's own windows, so that a text is cut in every runtime where it is cut in torch.
            windows = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1)
            found.append(sum(self._likelihood(*make_disjoint_window(window))[0] for window in windows))
        return found

    def _likelihood(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
        """Σ log p of the continuation's tokens, nats, and whether greedy decoding would say just them."""
        ids = [*context, *continuation][-(self.max_length + 1) :]
        count = min(len(continuation), len(ids) - 1)
        logprobs_TV = torch.log_softmax(self.runtime.logits(ids[:-1], last=count).double(), -1)
        targets_T = torch.tensor(ids[-count:])
        greedy = bool((logprobs_TV.argmax(-1) == targets_T).all())
        return float(logprobs_TV.gather(-1, targets_T[:, None]).sum()), greedy

    @property
    def eot_token_id(self) -> int:
        return int(self.runtime.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before the first token of a text: the begin token where there is one, as in the harness."""
        begin = self.runtime.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else int(begin)

    @property
    def max_length(self) -> int:
        return longest_text(self.runtime)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """As the harness's own model does: with a begin token where the tokenizer adds one, unless the text has it."""
        tokenizer = self.runtime.tokenizer
        if add_special_tokens is None and string.startswith(tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return [int(id_) for id_ in tokenizer.encode(string, **options)]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        tokenizer = getattr(self.runtime, "tokenizer", None)
        if tokenizer is None:
            raise NotMeasured(
                f"{self.runtime.description} keeps its chat template to itself", "leave it out of lm_eval"
            )
        text: str = tokenizer.apply_chat_template(
            chat_history, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return text

    @property
    def tokenizer_name(self) -> str:
        return str(getattr(getattr(self.runtime, "tokenizer", None), "name_or_path", "")).replace("/", "__")

    def _needs_logits(self) -> None:
        if not hasattr(self.runtime, "logits") or not hasattr(self.runtime, "tokenizer"):
            raise NotMeasured(
                f"{self.runtime.description} gives no log-likelihoods of a text, which this task asks for",
                'use evaluate.runtime = "torch", or tasks that generate',
            )
