"""What a collection asks: every request with its place in the files and the key that it is paid for under once."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal

import attrs

from bitnet_providers.config import CollectConfig
from bitnet_providers.contract import (
    GenerateRequest,
    Message,
    ProviderError,
    SampledTarget,
    Sampling,
    ScoreRequest,
    Teacher,
)
from bitnet_providers.journal import Key
from bitnet_providers.prompts import load_prompts, load_texts
from bitnet_providers.targets import target_problem, wanted_target


@attrs.frozen
class Planned:
    """One completion to have."""

    prompt_idx: int
    """Position in the prompts file; texts count on after the prompts."""
    sample_idx: int
    source_id: str
    kind: Literal["sample", "score"]
    format: str | None
    request: GenerateRequest | ScoreRequest
    key: Key


def plan_collection(config: CollectConfig, teacher: Teacher, teacher_kind: str, seed: int) -> tuple[Planned, ...]:
    """Every completion that `config` wants, by prompt and sample. Raises ProviderError for what can't be done."""
    can = teacher.capabilities
    if config.prompts is None and config.texts is None:
        raise ProviderError("[collect] asks for nothing: set collect.prompts, collect.texts, or both")
    if config.texts is not None and not can.scoring:
        raise ProviderError(
            f'collect.texts needs a teacher that scores given text, and "{teacher_kind}" does not: '
            "take collect.texts out, or use another teacher"
        )
    problem = target_problem(config, teacher_kind, can)
    if problem is not None:
        raise ProviderError(problem)
    if config.targets != "sampled" and 0 < can.max_top_logprobs < config.top_k:
        raise ProviderError(
            f'collect.top_k is {config.top_k}, and "{teacher_kind}" gives at most {can.max_top_logprobs} candidates: '
            f"set collect.top_k = {can.max_top_logprobs}"
        )
    who = {"teacher": teacher_kind, **{key: teacher.description.get(key) for key in ("model", "fingerprint")}}
    draws: Counter[str] = Counter()
    planned = []
    top_k = 0 if config.targets == "sampled" else min(config.top_k, can.max_top_logprobs)
    for prompt_idx, source_id, kind, format_, request, samples in _requests(config, top_k):
        digest = _digest(who, request, seed)
        for sample_idx in range(samples):
            # The same prompt twice in a file means two draws, not one draw counted twice.
            key = (digest, draws[digest])
            draws[digest] += 1
            planned.append(Planned(prompt_idx, sample_idx, source_id, kind, format_, _with_seed(request, key), key))
    return tuple(planned)


def _requests(
    config: CollectConfig, top_k: int
) -> Iterator[tuple[int, str, Literal["sample", "score"], str | None, GenerateRequest | ScoreRequest, int]]:
    prompts = load_prompts(config.prompts)[: config.max_prompts] if config.prompts is not None else ()
    texts = load_texts(config.texts)[: config.max_texts] if config.texts is not None else ()
    sampling = Sampling(config.temperature, config.top_p, config.max_new_tokens)
    target = wanted_target(config)
    for index, prompt in enumerate(prompts):
        generate = GenerateRequest(_with_system(prompt.messages, config.system_prompt), sampling, top_k, target)
        yield index, prompt.id, "sample", prompt.format, generate, config.samples_per_prompt
    for index, text in enumerate(texts, len(prompts)):
        messages = _with_system(text.messages, config.system_prompt) if text.messages else ()
        score = ScoreRequest(text.text, top_k, messages, config.max_text_tokens, target)
        yield index, text.id, "score", text.format, score, 1


def _with_system(messages: tuple[Message, ...], system_prompt: str | None) -> tuple[Message, ...]:
    if system_prompt is None or messages[0]["role"] == "system":
        return messages
    return ({"role": "system", "content": system_prompt}, *messages)


def _digest(who: dict[str, Any], request: GenerateRequest | ScoreRequest, seed: int) -> str:
    """sha256 of everything that decides a completion; the run's seed counts only where something is drawn."""
    asked = attrs.asdict(request) | who | {"kind": type(request).__name__}
    if request.target is None:
        del asked["target"]  # a completion of the top K alone keeps the key that it was paid for under
    elif isinstance(request.target, SampledTarget):
        asked["target"]["seed"] = seed
    if isinstance(request, GenerateRequest):
        asked["sampling"]["seed"] = seed if request.sampling.temperature > 0 else 0
    text = json.dumps(asked, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _with_seed(request: GenerateRequest | ScoreRequest, key: Key) -> GenerateRequest | ScoreRequest:
    """Each draw gets a seed of its own out of its key, so it does not matter which requests share a batch."""
    digest = hashlib.sha256(f"{key[0]}:{key[1]}".encode()).digest()
    seed = int.from_bytes(digest[:4], "big") >> 1  # 31 bits: some APIs take signed 32-bit seeds
    if isinstance(request.target, SampledTarget):
        request = attrs.evolve(request, target=attrs.evolve(request.target, seed=seed))
    if isinstance(request, ScoreRequest):
        return request
    return attrs.evolve(request, sampling=attrs.evolve(request.sampling, seed=seed))
