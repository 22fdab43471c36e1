"""What a collection asks: every request with its place in the files and the key that it is paid for under once."""

import hashlib
import itertools
import json
from array import array
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal, overload

import attrs
import msgspec
import numpy as np
from numpy.typing import NDArray

from bitnet_providers.collect.targets_and_capabilities import conversation_problems, not_given, wanted_target
from bitnet_providers.config import CollectConfig
from bitnet_providers.contract import GenerateRequest, SampledTarget, Sampling, ScoreRequest, Teacher
from bitnet_providers.prompts.load_prompts import Inputs, check_inputs, load_inputs
from bitnet_providers.raw.completion_ids import Key, key_ids


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


@attrs.define
class _Packed:
    """Prompts and texts, packed."""

    example: dict[str, GenerateRequest | ScoreRequest] = attrs.Factory(dict)
    """A request of each kind: what all of that kind have in common."""
    packed: bytearray = attrs.Factory(bytearray)
    ends: "array[int]" = attrs.Factory(lambda: array("q", [0]))
    """[inputs + 1] where each ends in `packed`."""
    digests: bytearray = attrs.Factory(bytearray)
    """32 bytes of each input."""
    samples: "array[int]" = attrs.Factory(lambda: array("q"))
    """[inputs] completions that are wanted of each."""
    is_sample: "array[int]" = attrs.Factory(lambda: array("b"))
    """[inputs] 1 for a prompt, 0 for a text to score."""
    test_from: int | None = None
    """The position with which the test documents begin; None: there are none."""

    def add(
        self,
        source_id: str,
        kind: str,
        format_: str | None,
        request: GenerateRequest | ScoreRequest,
        samples: int,
        sha256: str,
    ) -> None:
        self.example.setdefault(kind, request)
        self.is_sample.append(kind == "sample")
        text = request.text if isinstance(request, ScoreRequest) else None
        self.packed += msgspec.msgpack.encode((source_id, format_, request.messages, text))
        self.ends.append(len(self.packed))
        self.samples.append(samples)
        self.digests += bytes.fromhex(sha256)

    def sha256(self, index: int) -> str:
        return self.digests[32 * index : 32 * index + 32].hex()

    def first_draws(self) -> NDArray[np.int64]:
        """[inputs] The same prompt twice in a file means two draws, not one draw counted twice."""
        digests, samples = np.frombuffer(self.digests, np.uint64).reshape(-1, 4), np.array(self.samples)
        order = np.lexsort(digests.T)  # stable: equal ones stay in the file's order
        before = np.cumsum(samples[order]) - samples[order]
        new = np.ones(len(order), bool)
        new[1:] = (digests[order[1:]] != digests[order[:-1]]).any(axis=1)
        before -= before[np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))]
        first = np.empty_like(before)
        first[order] = before
        return first


@attrs.frozen(eq=False)
class _Columns:
    """The completions that are wanted, each [n] long."""

    inputs: _Packed
    of: NDArray[np.int32]
    """The input of each."""
    samples: NDArray[np.int32]
    draws: NDArray[np.int32]
    ids: NDArray[np.uint64]
    """[n, 2]"""

    def planned(self, number: Any) -> Planned:
        inputs, index = self.inputs, int(self.of[number])
        source_id, format_, messages, text = msgspec.msgpack.decode(
            memoryview(inputs.packed)[inputs.ends[index] : inputs.ends[index + 1]]
        )
        key = (inputs.sha256(index), int(self.draws[number]))
        kind: Literal["sample", "score"] = "sample" if text is None else "score"
        said = {"messages": tuple(messages)} if text is None else {"messages": tuple(messages), "text": text}
        request = _with_seed(attrs.evolve(inputs.example[kind], **said), key)
        return Planned(index, int(self.samples[number]), source_id, kind, format_, request, key)


def _columns(inputs: _Packed) -> _Columns:
    samples = np.array(inputs.samples, np.int64)
    of = np.repeat(np.arange(len(samples), dtype=np.int32), samples)
    numbers = (np.arange(len(of)) - np.repeat(np.cumsum(samples) - samples, samples)).astype(np.int32)
    draws = (np.repeat(inputs.first_draws(), samples) + numbers).astype(np.int32)
    ids = np.empty((len(of), 2), np.uint64)
    for number, (index, draw) in enumerate(zip(of.tolist(), draws.tolist(), strict=True)):
        ids[number] = key_ids([(inputs.sha256(index), draw)])[0]
    return _Columns(inputs, of, numbers, draws, ids)


class Plan(Sequence[Planned]):
    """Every completion to have, by prompt and sample. Each is made anew when it is looked at: in memory it takes about
    40 bytes, and its prompt its own length once."""

    def __init__(self, columns: _Columns, numbers: NDArray[np.int64] | None = None) -> None:
        """`numbers`: those of the plan that are meant; None: all."""
        self._columns = columns
        self._numbers = np.arange(len(columns.of)) if numbers is None else numbers

    def take(self, places: NDArray[Any]) -> "Plan":
        """Those at these places (numbers, or True for each that is meant)."""
        return Plan(self._columns, self._numbers[places])

    @property
    def ids(self) -> NDArray[np.uint64]:
        """[n, 2] `key_ids` of each."""
        return self._columns.ids[self._numbers]

    @property
    def is_sample(self) -> NDArray[np.bool_]:
        """[n] True where something is sampled, False where a text is scored."""
        return np.array(self._columns.inputs.is_sample, bool)[self._columns.of[self._numbers]]

    @property
    def test_from(self) -> int | None:
        """The `Planned.prompt_idx` with which the test documents begin; None: there are none."""
        return self._columns.inputs.test_from

    def with_keys(self, keys: Collection[Key]) -> NDArray[np.bool_]:
        """[n] True for those with one of these keys."""
        wanted, ids = key_ids(tuple(keys)), self.ids
        return np.isin(ids[:, 0], wanted[:, 0]) & np.isin(ids[:, 1], wanted[:, 1])

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[Planned]:
        return map(self._columns.planned, self._numbers)

    @overload
    def __getitem__(self, place: int) -> Planned: ...
    @overload
    def __getitem__(self, place: slice) -> "Plan": ...
    def __getitem__(self, place: int | slice) -> "Planned | Plan":
        if isinstance(place, slice):
            return Plan(self._columns, self._numbers[place])
        return self._columns.planned(self._numbers[place])


def plan_collection(config: CollectConfig, teacher: Teacher, teacher_kind: str, seed: int) -> Plan:
    """Every completion that `config` wants, by prompt and sample. Raises ProviderError for what can't be done."""
    check_inputs(config)
    can = teacher.capabilities
    for problem in not_given(config, teacher_kind, can):
        raise problem
    inputs = load_inputs(config)
    for problem in conversation_problems(inputs, can):
        raise problem
    who = {"teacher": teacher_kind, **{key: teacher.description.get(key) for key in ("model", "fingerprint")}}
    drawn = isinstance(wanted_target(config), SampledTarget)
    top_k = 0 if drawn else min(config.top_k, can.max_top_logprobs)
    has_test = config.test_prompts is not None or config.test_texts is not None
    packed = _Packed(test_from=len(inputs.prompts) + len(inputs.texts) if has_test else None)
    for _, source_id, kind, format_, request, samples in requests_of(config, inputs, top_k):
        packed.add(source_id, kind, format_, request, samples, _digest(who, request, seed))
    return Plan(_columns(packed))


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


def of_shard(planned: Plan, shard: str | None) -> Plan:
    """The part of machine i of n (``"i/n"``; None: all of it).

    By the key alone: no machine needs to know the others, and the parts are the whole, each completion in one of them.
    """
    if shard is None:
        return planned
    number, machines = map(int, shard.split("/"))
    return planned.take(np.fromiter((_slot(each.key, machines) == number - 1 for each in planned), bool, len(planned)))


def _slot(key: Key, machines: int) -> int:
    return int.from_bytes(hashlib.sha256(f"shard:{key[0]}:{key[1]}".encode()).digest()[:8], "big") % machines
