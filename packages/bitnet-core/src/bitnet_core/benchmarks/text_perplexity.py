"""``text_perplexity``: how well a model foresees a text, for each byte of it: the teacher's own text, and foreign one.

T tokens, V vocabulary. Per byte, so that models with other tokenizers compare. Only the tokens after the first are
foreseen where nothing stands before the text.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import attrs

from bitnet_core.benchmarks.contract import Benchmark, Conversation, NotMeasured, Result, Score, Subject
from bitnet_core.benchmarks.prompt_file import messages_of, read_records
from bitnet_core.config.evaluate import TextPerplexityOptions
from bitnet_core.errors import CoreError
from bitnet_core.runtime.contract import Runtime, ScoringRuntime

OWN = "own"
"""The kind of the texts that the option `own` names."""


@attrs.frozen
class GivenText:
    kind: str
    text: str
    messages: Conversation
    """What it answers; empty: it stands alone."""


def load_texts(path: Path, kind: str | None, limit: int | None) -> list[GivenText]:
    """The texts of a ``.jsonl`` file. `kind` of all; None: as each line says. Raises CoreError with file and line."""
    found = []
    for where, record in read_records(path, "text", '{"kind": "prose", "text": "..."}'):
        text, own = record.get("text"), record.get("kind", "text") if kind is None else kind
        if not isinstance(text, str) or not text.strip():
            raise CoreError(f'{where}: "text" is missing or empty', "add it, or take the line out")
        if not isinstance(own, str) or not own.isidentifier():
            raise CoreError(f'{where}: "kind" is {own!r}', "write one word, such as prose: a score goes by it")
        messages = messages_of(record, where) if "messages" in record or "prompt" in record else ()
        found.append(GivenText(own, text, messages))
    return found[:limit]


def load_text_perplexity(options: TextPerplexityOptions) -> Benchmark:
    """Raises CoreError for a file that can't be read."""
    texts = all_texts(options)

    def run(subject: Subject) -> Result:
        runtime = scoring(subject.runtime())
        sums: dict[str, list[tuple[float, int]]] = defaultdict(list)
        for each in texts:
            sums[each.kind].append(text_nats(runtime, each.messages, each.text, options.max_tokens))
        return Result(scores={kind: per_byte(found) for kind, found in sums.items()})

    return run


def all_texts(options: TextPerplexityOptions) -> list[GivenText]:
    """Raises CoreError."""
    files = ((options.texts, None), (options.own, OWN))
    return [text for path, kind in files if path is not None for text in load_texts(path, kind, options.max_texts)]


def check(options: TextPerplexityOptions) -> list[str]:
    """What is wrong with the files, before anything else runs."""
    try:
        all_texts(options)
    except CoreError as error:
        return [str(error)]
    return []


def per_byte(found: Sequence[tuple[float, int]]) -> Score:
    """The perplexity of a byte, of (nats, bytes) of each text."""
    nats, sizes = zip(*found, strict=True)
    return Score(sums=nats, counts=sizes, exp=True, unit="perplexity per byte", quality="inverse")


def scoring(runtime: Runtime) -> ScoringRuntime:
    """Raises NotMeasured where a runtime gives text alone."""
    if not hasattr(runtime, "logits"):
        raise NotMeasured(
            f"{runtime.description} gives text alone, no log-probabilities",
            'set evaluate.runtime = "torch" or "packed"',
        )
    return runtime  # type: ignore[return-value]


def text_nats(runtime: ScoringRuntime, messages: Conversation, text: str, max_tokens: int) -> tuple[float, int]:
    """(−log p of the text's tokens as an answer to `messages`, in nats; bytes of these tokens). A long text is cut."""
    import torch

    ids = runtime.encode(text)
    before: list[int] = []
    if messages:
        begin, before = runtime.encode(""), runtime.encode(messages)
        ids = ids[len(begin) :] if begin and ids[: len(begin)] == begin else ids
    ids = ids[: max(0, min(max_tokens, runtime.context - len(before)))]
    foreseen = ids if before else ids[1:]
    if not foreseen:
        return 0.0, 0
    logits_TV = runtime.logits([*before, *ids], last=len(foreseen) + 1)[:-1]
    found_T = torch.log_softmax(logits_TV, -1).gather(-1, torch.tensor(foreseen)[:, None])[:, 0]
    return -float(found_T.double().sum()), sum(len(runtime.raw[id_]) for id_ in foreseen)
