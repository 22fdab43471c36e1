"""The local teacher: generates and scores with a transformers model, batching the requests that wait together."""

import hashlib
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray

from bitnet_providers.contract import (
    Capabilities,
    Completion,
    GenerateRequest,
    ProviderError,
    RequestRefusedError,
    SampledTarget,
    Sampling,
    ScoreRequest,
    Target,
)
from bitnet_providers.teachers.local.batching import Batcher
from bitnet_providers.teachers.local.candidates import width
from bitnet_providers.teachers.local.chat_template import (
    begin_ids,
    chosen_template,
    end_of_turn_id,
    prompt_ids,
    text_ids,
)
from bitnet_providers.teachers.local.device_and_dtype import dtype_name, pick_device, pick_dtype
from bitnet_providers.teachers.local.generate import Decoded, decode
from bitnet_providers.teachers.local.load_model import is_quantised, load_model, uncompiled
from bitnet_providers.teachers.local.model_source import model_fingerprint, model_folder, model_name
from bitnet_providers.teachers.local.options import LOCAL_CAPABILITIES, LocalTeacherConfig
from bitnet_providers.teachers.local.scoring import Scored, ScoreRow, has_plain_head, score
from bitnet_providers.teachers.local.vocabulary_bytes import token_bytes


def open_local(options: LocalTeacherConfig) -> "LocalTeacher":
    """Load the model onto its device. Raises ProviderError."""
    folder = model_folder(options.model)
    device = pick_device(options.device)
    dtype = pick_dtype(options.dtype, device)
    model, tokenizer = load_model(folder, device, dtype)
    can = attrs.evolve(LOCAL_CAPABILITIES, chat=bool(options.chat_template) or tokenizer.chat_template is not None)
    template = chosen_template(tokenizer, options.chat_template)
    if template is not None:
        tokenizer.chat_template = template
    fingerprint = model_fingerprint(folder)
    if options.chat_template and template is not None:  # another template is another teacher
        fingerprint += f"-{hashlib.sha256(template.encode()).hexdigest()[:8]}"
    if options.dtype != "auto":  # other numbers; "auto" is as good as any, so that a run may move
        fingerprint += f"-{options.dtype}"
    return LocalTeacher(model, tokenizer, folder, model_name(options.model), options.batch_size, can, fingerprint)


@attrs.frozen
class _Generate:
    prompt_ids: Sequence[int]
    sampling: Sampling
    draw_seed: int


class LocalTeacher:
    """An open local model; see `bitnet_providers.contract.Teacher`."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        folder: Path,
        name: str,
        batch_size: int,
        capabilities: Capabilities = LOCAL_CAPABILITIES,
        fingerprint: str | None = None,
    ) -> None:
        """`folder` is where `model` and `tokenizer` came from; `fingerprint` is theirs (None: that of the folder)."""
        self._capabilities = capabilities
        self._fingerprint = model_fingerprint(folder) if fingerprint is None else fingerprint
        self._model = model
        self._tokenizer = tokenizer
        self._name = name
        self._batcher = Batcher(self._run_batch, batch_size, str(model.device))
        self._is_quantised = is_quantised(folder)
        self._stop_ids = _stop_ids(model, tokenizer)
        self._end_of_turn = end_of_turn_id(tokenizer, self._stop_ids)
        self._begin = begin_ids(tokenizer)
        self._context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        with uncompiled(self._is_quantised):
            self._plain_head = has_plain_head(model)
        self._bytes_by_id = token_bytes(tokenizer)
        self._description = self._describe(folder)

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @property
    def description(self) -> Mapping[str, Any]:
        """``model``, ``model_folder``, ``fingerprint`` (which model), ``device``, ``dtype``, ``parameters``,
        ``memory_bytes``, ``vocab_size``, ``context_tokens``, ``end_of_turn`` and ``template_sha256``."""
        return self._description

    @property
    def chat_template(self) -> str | None:
        """Jinja, as the tokenizer has it; None where it has none. ``template_sha256`` is of this."""
        template = self._tokenizer.chat_template
        template = template.get("default") if isinstance(template, Mapping) else template
        return None if template is None else str(template)

    async def generate(self, request: GenerateRequest) -> Completion:
        """One sampled answer. Raises ProviderError."""
        self._check_open()
        self._check_candidates(request.top_logprobs, request.target)
        sampling = request.sampling
        prompt = prompt_ids(self._tokenizer, request.messages, self._name)
        self._check_ids(prompt)
        self._check_length(len(prompt) + sampling.max_new_tokens, "the prompt and max_new_tokens", "max_new_tokens")
        target, draw_seed = _without_seed(request.target)
        group = ("generate", attrs.evolve(sampling, seed=0), target, request.top_logprobs)
        completion: Completion = await self._batcher.submit(group, len(prompt), _Generate(prompt, sampling, draw_seed))
        return completion

    async def score(self, request: ScoreRequest) -> Completion:
        """How likely the model finds a text. Raises ProviderError.

        Plain text (no messages): its tokens behind the begin token, where the tokenizer puts one before any text; else
        the first has no distribution. With messages: the text's tokens behind the templated conversation, then the
        end-of-turn token unless `max_tokens` cut the text; all of them carry distributions.
        """
        self._check_open()
        self._check_candidates(request.top_logprobs, request.target)
        response = text_ids(self._tokenizer, request.text)
        whole = request.max_tokens is None or len(response) <= request.max_tokens
        response = response[: request.max_tokens]
        prompt = self._begin
        if request.messages:
            prompt = prompt_ids(self._tokenizer, request.messages, self._name)
            if whole and self._end_of_turn is not None:
                response.append(self._end_of_turn)
        elif not whole and self._context is not None:  # `max_tokens` may be all that the model reads
            response = response[: self._context - len(prompt)]
        self._check_ids([*prompt, *response])
        self._check_length(len(prompt) + len(response), "the text with its prompt", "max_text_tokens")
        if not response:
            raise RequestRefusedError("a text to score has no tokens", "give it at least one character")
        target, draw_seed = _without_seed(request.target)
        row = ScoreRow((*prompt, *response), max(1, len(prompt)), draw_seed)
        completion: Completion = await self._batcher.submit(
            ("score", target, request.top_logprobs), len(row.token_ids), (row, len(prompt))
        )
        return completion

    async def aclose(self) -> None:
        """Stop what is running and let the weights go."""
        await self._batcher.aclose()
        self._model = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    # Both run in the worker thread.

    def _run_batch(self, group: Hashable, items: Sequence[Any], abandoned: Callable[[], bool]) -> Sequence[Completion]:
        assert isinstance(group, tuple)
        run = self._generate_batch if group[0] == "generate" else self._score_batch
        started = time.perf_counter()
        with uncompiled(self._is_quantised):
            return run(items, int(group[-1]), group[-2], started, abandoned)

    def _generate_batch(
        self,
        items: Sequence[_Generate],
        top_k: int,
        target: Target | None,
        started: float,
        abandoned: Callable[[], bool],
    ) -> Sequence[Completion]:
        prompts = [item.prompt_ids for item in items]
        decoded = decode(
            self._model,
            prompts,
            [item.sampling for item in items],
            self._candidates(top_k),
            self._stop_ids,
            abandoned,
            target,
            [item.draw_seed for item in items],
        )
        return [
            self._completion(
                prompt=np.asarray(prompt, np.int32),
                token_ids=row.token_ids,
                token_logprobs=row.token_logprobs,
                found=row,
                target=target,
                finish_reason="stop" if row.stopped else "length",
                started=started,
            )
            for prompt, row in zip(prompts, decoded, strict=True)
        ]

    def _score_batch(
        self,
        items: Sequence[tuple[ScoreRow, int]],
        top_k: int,
        target: Target | None,
        started: float,
        abandoned: Callable[[], bool],
    ) -> Sequence[Completion]:
        rows = [row for row, _ in items]
        scored = score(
            self._model, rows, self._candidates(top_k), target, plain_head=self._plain_head, abandoned=abandoned
        )
        completions = []
        for (row, prompt_tokens), result in zip(items, scored, strict=True):
            token_ids = np.asarray(row.token_ids, np.int32)
            completions.append(
                self._completion(
                    prompt=token_ids[:prompt_tokens],
                    token_ids=token_ids[prompt_tokens:],
                    token_logprobs=_behind_unknown(result.token_logprobs, len(token_ids) - prompt_tokens),
                    found=result,
                    target=target,
                    finish_reason="scored",
                    started=started,
                )
            )
        return completions

    def _completion(
        self,
        *,
        prompt: NDArray[np.int32],
        token_ids: NDArray[np.int32],
        token_logprobs: NDArray[np.float32],
        found: Decoded | Scored,
        target: Target | None,
        finish_reason: Any,
        started: float,
    ) -> Completion:
        """Candidates are [n, K] for the last n of the T positions."""
        used = found.candidate_logprobs > -np.inf
        counts = np.zeros(len(token_ids), np.int32)
        counts[len(token_ids) - len(used) :] = used.sum(axis=1)
        table = self._bytes_by_id
        return Completion(
            text=b"".join(table[token] if token < len(table) else b"" for token in token_ids),
            token_logprobs=token_logprobs,
            candidate_counts=counts,
            candidate_logprobs=found.candidate_logprobs[used],
            finish_reason=finish_reason,
            model=self._name,
            prompt_tokens=len(prompt),
            latency_s=time.perf_counter() - started,
            token_ids=token_ids,
            prompt_ids=prompt,
            candidate_ids=found.candidate_ids[used],
            log_z=None if target is None else _behind_unknown(found.log_z, len(token_ids)),
            entropy=_behind_unknown(found.entropy, len(token_ids)) if isinstance(target, SampledTarget) else None,
        )

    # Checks and facts

    def _candidates(self, top_k: int) -> int:
        return min(top_k, int(self._model.get_output_embeddings().weight.shape[0]))

    def _check_open(self) -> None:
        if self._model is None:
            raise ProviderError("the teacher is closed", "open it again")

    def _check_candidates(self, top_logprobs: int, target: Target | None) -> None:
        asked, setting = max((top_logprobs, "top_k"), (width(0, target), "draws"))
        if asked > self.capabilities.max_top_logprobs:
            raise ProviderError(
                f"{asked} candidates per position were asked for, the local teacher gives at most "
                f"{self.capabilities.max_top_logprobs}",
                f"lower collect.{setting}",
            )

    def _check_ids(self, ids: Sequence[int]) -> None:
        known = int(self._model.get_input_embeddings().weight.shape[0])
        if (largest := max(ids, default=0)) >= known:
            raise RequestRefusedError(
                f"{self._name}'s tokenizer gives token {largest:,}, and the model knows {known:,}",
                "put the tokenizer's files of this very model beside its weights",
            )

    def _check_length(self, tokens: int, what: str, setting: str) -> None:
        """The setting's section ([baseline] or [collect]) is known to the caller, who names it."""
        if self._context is not None and tokens > self._context:
            raise RequestRefusedError(
                f"{what} have {tokens} tokens, {self._name} reads {self._context}",
                f"shorten the prompt, or lower {setting}",
            )

    def _describe(self, folder: Path) -> dict[str, Any]:
        weights = {weight.data_ptr(): weight for weight in self._model.parameters()}.values()  # tied ones once
        template = self.chat_template
        end = self._end_of_turn
        return {
            "model": self._name,
            "model_folder": str(folder),
            "fingerprint": self._fingerprint,
            "device": str(self._model.device),
            "dtype": dtype_name(self._model.dtype),
            "parameters": sum(weight.numel() for weight in weights),
            "memory_bytes": sum(weight.numel() * weight.element_size() for weight in weights),
            "vocab_size": int(self._model.config.get_text_config().vocab_size),
            "context_tokens": self._context,
            "end_of_turn": None if end is None else self._bytes_by_id[end].decode("utf-8", "replace"),
            "template_sha256": None if template is None else hashlib.sha256(template.encode()).hexdigest(),
        }


def _without_seed(target: Target | None) -> tuple[Target | None, int]:
    """What requests of one batch share, and the request's own seed."""
    if isinstance(target, SampledTarget):
        return attrs.evolve(target, seed=0), target.seed
    return target, 0


def _behind_unknown(values: NDArray[np.float32], positions: int) -> NDArray[np.float32]:
    """The last values of `positions`, NaN before (the first token of a plain text has no distribution)."""
    return np.concatenate([np.full(positions - len(values), np.nan, np.float32), values])


def _stop_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end a response: those of the generation config and the tokenizer's end of sequence."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(int(each) for each in [*ids, tokenizer.eos_token_id] if each is not None)
