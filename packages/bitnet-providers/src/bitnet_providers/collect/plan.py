"""What a collection asks: every request with its place in the files and the key that it is paid for under once."""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import attrs

from bitnet_providers.collect.targets import target_problem, wanted_target
from bitnet_providers.config import CollectConfig
from bitnet_providers.contract import (
    Capabilities,
    GenerateRequest,
    ProviderError,
    SampledTarget,
    Sampling,
    ScoreRequest,
    Teacher,
)
from bitnet_providers.prompts.inputs import Inputs, check_inputs, load_inputs
from bitnet_providers.raw.keys import Key


@attrs.frozen
class Planned:
    """One completion to have."""

    prompt_idx: int
    """Position in the prompts file; texts count on after the prompts, then the test documents."""
    sample_idx: int
    source_id: str
    kind: Literal["sample", "score"]
    format: str | None
    request: GenerateRequest | ScoreRequest
    key: Key


def plan_collection(config: CollectConfig, teacher: Teacher, teacher_kind: str, seed: int) -> tuple[Planned, ...]:
    """Every completion that `config` wants, by prompt and sample. Raises ProviderError for what can't be done."""
    check_inputs(config)
    can = teacher.capabilities
    for problem in not_given(config, teacher_kind, can):
        raise problem
    who = {"teacher": teacher_kind, **{key: teacher.description.get(key) for key in ("model", "fingerprint")}}
    draws: Counter[str] = Counter()
    planned = []
    drawn = isinstance(wanted_target(config), SampledTarget)
    top_k = 0 if drawn else min(config.top_k, can.max_top_logprobs)
    for prompt_idx, source_id, kind, format_, request, samples in requests_of(config, load_inputs(config), top_k):
        digest = _digest(who, request, seed)
        for sample_idx in range(samples):
            # The same prompt twice in a file means two draws, not one draw counted twice.
            key = (digest, draws[digest])
            draws[digest] += 1
            planned.append(Planned(prompt_idx, sample_idx, source_id, kind, format_, _with_seed(request, key), key))
    return tuple(planned)


def not_given(config: CollectConfig, teacher_kind: str, can: Capabilities) -> Iterator[ProviderError]:
    """What `config` wants and such a teacher does not give, each with its fix."""
    scores = config.texts is not None or (config.dataset is not None and config.dataset.gives == "texts")
    for key, given in (("texts", scores), ("test_texts", config.test_texts is not None)):
        if given and not can.scoring:
            yield ProviderError(
                f'collect.{key} needs a teacher that scores given text, and "{teacher_kind}" does not',
                f"take collect.{key} out, or use another teacher",
            )
    target = target_problem(config, teacher_kind, can)
    if target is not None:
        yield target
    if not isinstance(wanted_target(config), SampledTarget) and 0 < can.max_top_logprobs < config.top_k:
        yield ProviderError(
            f'collect.top_k is {config.top_k}, and "{teacher_kind}" gives at most {can.max_top_logprobs} candidates',
            f"set collect.top_k = {can.max_top_logprobs}",
        )


def requests_of(
    config: CollectConfig, inputs: Inputs, top_k: int
) -> Iterator[tuple[int, str, Literal["sample", "score"], str | None, GenerateRequest | ScoreRequest, int]]:
    """(position, source_id, kind, format, request, samples) of each input; none has its seed yet.

    Prompts, then texts, then those of the test documents.
    """
    sampling = Sampling(config.temperature, config.top_p, config.max_new_tokens)
    target = wanted_target(config)
    index = itertools.count()
    for prompts, texts in ((inputs.prompts, inputs.texts), (inputs.test_prompts, inputs.test_texts)):
        for prompt in prompts:
            generate = GenerateRequest(prompt.messages, sampling, top_k, target)
            yield next(index), prompt.id, "sample", prompt.format, generate, config.samples_per_prompt
        for text in texts:
            score = ScoreRequest(text.text, top_k, text.messages, config.max_text_tokens, target)
            yield next(index), text.id, "score", text.format, score, 1


def first_test_index(config: CollectConfig) -> int | None:
    """The position with which the test documents begin; None where there are none."""
    if config.test_prompts is None and config.test_texts is None:
        return None
    inputs = load_inputs(config)
    return len(inputs.prompts) + len(inputs.texts)


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


def of_shard(planned: Sequence[Planned], shard: str | None) -> tuple[Planned, ...]:
    """The part of machine i of n (``"i/n"``; None: all of it).

    By the key alone: no machine needs to know the others, and the parts are the whole, each completion in one of them.
    """
    if shard is None:
        return tuple(planned)
    number, machines = map(int, shard.split("/"))
    return tuple(each for each in planned if _slot(each.key, machines) == number - 1)


def _slot(key: Key, machines: int) -> int:
    return int.from_bytes(hashlib.sha256(f"shard:{key[0]}:{key[1]}".encode()).digest()[:8], "big") % machines
