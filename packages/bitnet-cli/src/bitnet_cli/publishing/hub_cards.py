"""The cards of what `bitnet push` uploads: of the repository with the model, and of the dataset with its traces."""

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import attrs

from bitnet_cli.publishing.files_to_push import Exports
from bitnet_cli.publishing.licences import Origin, terms_blocks
from bitnet_cli.report.blocks import Block, Code, Heading, Table, Text
from bitnet_cli.report.markdown import to_markdown
from bitnet_cli.report.number_format import bytes_text, number, percent
from bitnet_cli.report.read_run import RunRecord, read_run
from bitnet_cli.report.sections.benchmarks import benchmark_blocks
from bitnet_cli.report.sections.verdict import verdict

BY_DOCUMENT = ("heldout", "agreement")
"""Benchmarks on one split of the run's own documents."""


def model_card(
    run: Path, repo: str, exports: Exports, origin: Origin, licence: Mapping[str, Any], traces: str | None
) -> str:
    """README.md with its metadata, as huggingface_hub writes it. Scores are only those of the exported checkpoint."""
    from huggingface_hub import ModelCard, ModelCardData

    record = read_run(run)
    scored = record.evaluation if record.evaluation.get("checkpoint") == exports.checkpoint else {}
    base = origin.base_model
    data = ModelCardData(
        base_model=None if base is None else base.repo,
        datasets=None if traces is None else [traces],
        library_name="transformers" if exports.kinds & {"hf", "packed"} else "gguf",
        pipeline_tag="text-generation",
        tags=["bitnet", "1.58-bit", "ternary", "distillation", *(["gguf"] if exports.gguf() else [])],
        model_name=repo.partition("/")[2],
        eval_results=list(_results(scored)) or None,
        **licence,
    )
    blocks = _model_blocks(attrs.evolve(record, evaluation=scored), repo, exports, origin, traces)
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{to_markdown(list(blocks))}"))


def _results(evaluation: Mapping[str, Any]) -> Iterator[Any]:
    """The student's scores for the card's ``model-index``."""
    from huggingface_hub import EvalResult

    for benchmark, entry in (evaluation.get("benchmarks") or {}).items():
        for score, figures in (entry.get("scores") or {}).items():
            value = (figures.get("student") or {}).get("value")
            if not isinstance(value, int | float):
                continue
            unit = str(figures.get("unit") or "")
            yield EvalResult(
                task_type="text-generation",
                dataset_type=benchmark,
                dataset_name=f"BitNet KDE's {benchmark}",
                dataset_split=str(evaluation["split"])
                if evaluation.get("split") and benchmark in BY_DOCUMENT
                else None,
                metric_type=score,
                metric_name=f"{score} ({unit})" if unit else score,
                metric_value=value,
            )


def _model_blocks(run: RunRecord, repo: str, exports: Exports, origin: Origin, traces: str | None) -> Iterator[Block]:
    teacher = "" if origin.teacher is None else f" from {origin.teacher.title}"
    yield Heading(repo.partition("/")[2], level=1)
    yield Text(f"A ternary (1.58-bit) language model, distilled{teacher} with BitNet KDE.")
    if run.evaluation:
        yield Text(verdict(run), strong=True)
    yield Heading("Files")
    sizes = [(name, bytes_text(path.stat().st_size), _opens_in(name)) for name, path in exports.files.items()]
    yield Table(("file", "size", "opens in"), tuple(each for each in sizes if each[2]), numeric=False)
    yield Heading("Open it")
    yield from _snippets(repo, exports)
    if run.evaluation:
        yield from benchmark_blocks(run.evaluation)
    else:
        yield Heading("Benchmarks")
        yield Text(f"Not measured: the run has no evaluation of {exports.checkpoint}.")
    yield Heading("How it was made")
    yield Table(("what", "value"), tuple(_making(run, exports, origin, traces)), numeric=False)
    yield from terms_blocks(origin, "This model")


def _opens_in(name: str) -> str:
    path = PurePosixPath(name)
    if path.suffix == ".gguf":
        return "llama.cpp"
    if path.name == "Modelfile":
        return "Ollama"
    if path.name == "model.safetensors":
        return "transformers with bitnet-core" if path.parent.name == "packed" else "transformers"
    return ""


def _snippets(repo: str, exports: Exports) -> Iterator[Block]:
    if gguf := exports.gguf():
        file = gguf[0]
        yield Code(f"hf download {repo} {file} --local-dir .\nllama-cli -m {file}\nbitnet chat {file}")
    load = "tokenizer = AutoTokenizer.from_pretrained({0})\nmodel = AutoModelForCausalLM.from_pretrained({0})"
    first = "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
    if "hf" in exports.kinds:
        yield Code(first + load.format(f'"{repo}"'))
    if "packed" in exports.kinds:
        known = "import bitnet_core.model  # registers the architecture with transformers\n"
        yield Code(known + first + load.format(f'"{repo}", subfolder="packed"'))


def _making(run: RunRecord, exports: Exports, origin: Origin, traces: str | None) -> Iterator[tuple[str, str]]:
    trained = run.done["train"].summary if "train" in run.done else {}
    yield "checkpoint", exports.checkpoint
    yield "teacher", "not known: its answers were imported" if origin.teacher is None else origin.teacher.title
    yield "start", "random weights" if origin.start is None else origin.start.title
    if trained.get("seen_tokens"):
        yield "training", f"{number(trained.get('steps'))} steps, {number(trained['seen_tokens'])} tokens"
    if run.environment:
        yield "machine", f"{run.environment.get('cpu')}, {run.environment.get('cpu_count')} cores"
        yield "bitnet", str((run.environment.get("packages") or {}).get("bitnet-cli", "–"))
    if "train" in run.done:
        yield "date", run.done["train"].finished[:10]
    if traces is not None:
        yield "traces", traces


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
    return str(DatasetCard(f"---\n{data.to_yaml()}\n---\n\n{to_markdown(_dataset_blocks(stats, repo, origin, model))}"))


def _dataset_blocks(stats: Mapping[str, Any], repo: str, origin: Origin, model: str) -> list[Block]:
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
