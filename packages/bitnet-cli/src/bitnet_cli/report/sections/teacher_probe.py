"""What the probe found of the teacher, as a table: in the report, and on the screen by `bitnet probe`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from bitnet_cli.report.blocks import Block, Bullets, Heading, Table, Text
from bitnet_cli.report.number_format import number

if TYPE_CHECKING:
    from bitnet_providers.probe.verdict import Verdict


def probe_blocks(found: dict[str, Any]) -> Iterator[Block]:
    """The section on ``reports/teacher_probe.json``; nothing where that is not there, or of another version."""
    from bitnet_providers.probe.verdict import from_json

    verdict = from_json(found)
    if verdict is None:
        return
    yield Heading("The teacher, probed", level=3)
    word = "trusted for KD" if verdict.trusted_for_kd else "not trusted for KD"
    yield Text(f"On {verdict.probed[:10]}: {word}.")
    yield Table(("what", "found"), tuple(verdict_rows(verdict)), numeric=False)
    if verdict.reasons or verdict.notes:
        yield Bullets((*verdict.reasons, *verdict.notes))


def verdict_rows(verdict: "Verdict") -> list[tuple[str, str]]:
    """(what, found) in words."""
    scoring: str = verdict.scoring
    if verdict.scoring_error is not None:
        scoring += f" with generation: {verdict.scoring_error:.3g} nats a token apart"
    bytes_words = {"valid": "make the text", "wrong": "do not make the text", "none": "none given"}
    return [
        ("teacher", f"{verdict.kind}: {verdict.model}"),
        ("candidates per position", f"{verdict.max_top_logprobs} of {verdict.declared_top_logprobs} declared"),
        ("token bytes", bytes_words[verdict.token_bytes]),
        ("greatest mass of a position", number(verdict.max_mass)),
        ("positions with candidates", _percent(verdict.with_candidates)),
        ("sampled token among them", _percent(verdict.sampled_among)),
        ("candidates without a value", number(verdict.sentinels)),
        ("candidates twice at a position", number(verdict.duplicates)),
        ("temperature", verdict.temperature_rule),
        ("top-p", "before: any top-p" if verdict.top_p == "before" else f"{verdict.top_p}: collect at top_p 1"),
        ("two equal calls", "–" if verdict.repeat_kl is None else f"KL {verdict.repeat_kl:.2g} nats"),
        ("scoring", scoring),
        ("a request takes", f"{verdict.latency_s:.2f} s"),
        (
            "the probe took",
            f"{verdict.requests} requests, {verdict.prompt_tokens:,} + {verdict.completion_tokens:,} tokens",
        ),
    ]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"
