"""The card of a dataset repository with a run's KD traces."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitnet_cli.publishing.parents_and_licences import Origin
from bitnet_cli.publishing.teacher_terms import terms_blocks
from bitnet_cli.report.blocks import Block, Heading, Table, Text
from bitnet_cli.report.markdown import to_markdown
from bitnet_cli.report.number_format import number, percent

COLUMNS = (
    ("prompt_idx, sample_idx, step_idx", "the document, the sample of it, and the place in it"),
    ("teacher_sample_id, teacher_sample_text", "the token that stands there, and its bytes"),
    ("topk_ids, topk_logprobs", "the teacher's likeliest tokens there, and their log-probabilities in nats"),
    ("other_logprob", "log-probability of all other tokens together"),
    ("is_prompt, has_kd, in_ce, is_struct_token", "what a loss does with the row"),
    ("split", "train, heldout (validation) or test"),
)
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"),
         (10_000_000, "1M<n<10M"), (100_000_000, "10M<n<100M"), (1_000_000_000, "100M<n<1B"))  # fmt: skip


def traces_card(run: Path, repo: str, origin: Origin, licence: Mapping[str, Any], model: str) -> str:
    """README.md with its metadata, as huggingface_hub writes it. Raises CoreError."""
    from huggingface_hub import DatasetCard, DatasetCardData

    from bitnet_core.traces.stats import trace_stats

    stats = trace_stats(run)
    rows = int(stats.get("rows") or 0)
    data = DatasetCardData(
        pretty_name=repo.partition("/")[2],
        task_categories=["text-generation"],
        annotations_creators=["machine-generated"],
        size_categories=[next((name for limit, name in SIZES if rows < limit), "n>1B")],
        tags=["knowledge-distillation", "logits", "bitnet"],
        configs=[{"config_name": "default", "data_files": "data/*.parquet"}],
        **licence,
    )
    return str(DatasetCard(f"---\n{data.to_yaml()}\n---\n\n{to_markdown(_blocks(stats, repo, origin, model))}"))


def _blocks(stats: Mapping[str, Any], repo: str, origin: Origin, model: str) -> list[Block]:
    teacher = "a teacher" if origin.teacher is None else origin.teacher.title
    figures = (
        ("documents", number(stats.get("documents"))),
        ("token positions", number(stats.get("rows"))),
        ("with the teacher's distribution", number(stats.get("kd_positions"))),
        ("of each, likeliest tokens", number(stats.get("mean_candidates"))),
        ("the teacher's probability that these hold", percent(stats.get("mean_topk_mass"))),
        ("tokenizer", f"that of {model}"),
    )
    return [
        Heading(repo.partition("/")[2], level=1),
        Text(
            f"What {teacher} said, token by token, and how likely it found each of its likeliest tokens: traces for "
            f"knowledge distillation, in the tokens of {model}. Prompts and answers are in it, word for word."
        ),
        Table(("figure", "value"), figures, numeric=False),
        Heading("Columns"),
        Text(
            "Row t holds token t and the distribution it was drawn from. bitnet_core.KDTraceDataset reads the shards."
        ),
        Table(("column", "holds"), COLUMNS, numeric=False),
        *terms_blocks(origin, "This dataset"),
    ]
