"""``[evaluate]`` and ``[evaluate.NAME]``: what is measured, in which runtime, and each built-in benchmark's options."""

from pathlib import Path
from typing import Literal, get_args

import attrs

from bitnet_core.settings import not_negative, positive, setting

_positive = attrs.validators.gt(0)


@attrs.frozen(kw_only=True)
class NoOptions:
    """A benchmark of the held-out traces, which the evaluation reads anyhow."""


@attrs.frozen(kw_only=True)
class JSONValidityOptions:
    """Answers that must be JSON of a given schema."""

    prompts: Path = setting(path=True, help='.jsonl, a line {"prompt" or "messages", "schema"} each')
    max_prompts: int | None = setting(
        default=None, help="the first so many (none: all)", validator=attrs.validators.optional(_positive)
    )
    max_new_tokens: int = setting(default=128, help="tokens of an answer at most", validator=_positive)


@attrs.frozen(kw_only=True)
class TextPerplexityOptions:
    """Given texts, scored for each byte; a kind of text has a score of its own."""

    texts: Path = setting(path=True, help='.jsonl, a line {"kind", "text"} each; "messages" where it is an answer')
    own: Path | None = setting(default=None, path=True, help='texts of the teacher\'s, in such a file: the kind "own"')
    max_texts: int | None = setting(
        default=None, help="the first so many of each file (none: all)", validator=attrs.validators.optional(_positive)
    )
    max_tokens: int = setting(default=512, help="tokens of a text; the rest is cut", validator=_positive)


@attrs.frozen(kw_only=True)
class FreeRunningOptions:
    """Answers drawn from each model, by themselves and by what the teacher thinks of them."""

    prompts: Path = setting(path=True, help='.jsonl, a line {"prompt" or "messages", "format"} each')
    max_prompts: int | None = setting(
        default=32, help="the first so many (none: all)", validator=attrs.validators.optional(_positive)
    )
    max_new_tokens: int = setting(default=128, help="tokens of an answer at most", validator=_positive)
    temperature: float = setting(default=0.7, help="0 is greedy", validator=not_negative)
    seed: int = setting(default=0, help="of the first answer; each further one has the next", validator=not_negative)


@attrs.frozen(kw_only=True)
class LMEvalOptions:
    """Tasks of EleutherAI's lm-evaluation-harness."""

    tasks: tuple[str, ...] = setting(
        default=("bitnet_json",), help="tasks and groups of tasks by name", validator=attrs.validators.min_len(1)
    )
    include_path: str = setting(default="", path=True, help="a folder with task YAMLs of your own; empty: none")
    limit: int | None = setting(
        default=None,
        help="documents of each task at most (none: all)",
        validator=attrs.validators.optional(_positive),
    )
    num_fewshot: int | None = setting(
        default=None,
        help="examples before each question (none: as the task says)",
        validator=attrs.validators.optional(attrs.validators.ge(0)),
    )
    batch_size: int = setting(default=8, help="requests at a time, in torch", validator=_positive)
    apply_chat_template: bool = setting(
        default=False, help="put the questions into the chat template, as --apply_chat_template does"
    )


RuntimeName = Literal["torch", "llamacpp", "packed"]
RUNTIME_NAMES: tuple[RuntimeName, ...] = get_args(RuntimeName)


def _each_once(_: object, __: object, names: tuple[str, ...]) -> None:
    if len(set(names)) != len(names):
        raise ValueError("names each benchmark once")


@attrs.frozen(kw_only=True)
class EvaluateConfig:
    """How the student is measured."""

    batch_size: int = setting(default=8, help="held-out documents a batch", validator=positive)
    max_seq_len: int = setting(default=512, help="positions of a document; the rest is cut", validator=positive)
    max_new_tokens: int = setting(default=48, help="tokens of each generated answer", validator=positive)
    max_prompts: int = setting(default=8, help="baseline prompts answered by the student", validator=positive)
    bootstrap_samples: int = setting(default=1000, help="resamples of documents for the intervals", validator=positive)
    runtime: str = setting(
        default="torch",
        help="what the student answers and is timed in: torch (the checkpoint), llamacpp (its GGUF "
        "file), packed (the checkpoint in two bits, docs/runtime.md)",
        validator=attrs.validators.in_(RUNTIME_NAMES),
    )
    runtime_positions: int | None = setting(
        default=None,
        help="held-out positions scored in a runtime other than torch (none: 64 where each takes a request of its own, "
        "else all; 0: none, the figures are torch's)",
        validator=attrs.validators.optional(not_negative),
    )
    benchmarks: tuple[str, ...] = setting(
        default=("heldout", "agreement"),
        help="what student and teacher are scored by; options in [evaluate.NAME]",
        validator=_each_once,
    )
    qei_quality: str = setting(
        default="perplexity",
        help='the quality of the index: perplexity (1 / perplexity on the held-out text), or "benchmark.score"',
    )

    def __attrs_post_init__(self) -> None:
        benchmark, dot, score = self.qei_quality.partition(".")
        if self.qei_quality == "perplexity":
            return
        if not dot or not score:
            raise ValueError(f'qei_quality = "{self.qei_quality}": write "perplexity", or "benchmark.score"')
        if benchmark not in self.benchmarks:
            raise ValueError(
                f'qei_quality = "{self.qei_quality}": add "{benchmark}" to benchmarks = [...], which says what is run'
            )
