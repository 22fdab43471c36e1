"""Options of the built-in benchmarks: the manifest's ``[evaluate.NAME]`` tables. Importing this loads no torch."""

from pathlib import Path

import attrs

from bitnet_core.settings import setting

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
