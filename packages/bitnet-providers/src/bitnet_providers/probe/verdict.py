"""The verdict: what the probe found, what a collection may do with it, and its file in the user's cache for a week."""

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import attrs

from bitnet_providers.config import CollectConfig
from bitnet_providers.contract import Capabilities, ProviderError
from bitnet_providers.probe.compare_answers import Order

State = Literal["agrees", "differs", "unclear", "not offered"]
"""What became of a teacher's scoring."""
VERDICT_VERSION = 2
"""Goes up when verdicts of before are no longer to be used."""


RULES: Mapping[Order, str] = {
    "before": "before: any temperature",
    "after": "after: collect at temperature 1",
    "unknown": "unknown: collect at temperature 1",
}


@attrs.frozen(kw_only=True)
class Verdict:
    """What a probe found. `trusted_for_kd` is about the candidates of generated text; scoring has its own field."""

    kind: str
    """The plugin."""
    model: str
    """The model's name as the provider returned it."""
    probed: str
    """ISO 8601, UTC."""
    trusted_for_kd: bool
    reasons: tuple[str, ...]
    """Why not; empty where it is trusted."""
    notes: tuple[str, ...]
    """What is worth knowing all the same."""
    max_top_logprobs: int
    """Usable candidates of the position that had most; the probe asked for what the teacher declares."""
    declared_top_logprobs: int
    token_bytes: Literal["valid", "wrong", "none"]
    """Whether the tokens' bytes, as the server gives them, make the message's content; "none": there are none."""
    temperature: Order
    """Whether log-probabilities are those before or after temperature."""
    temperature_rule: str
    """What a collection has to do for it: one of `RULES`."""
    top_p: Order
    """The same of top-p; after it, or unknown: collect at top_p = 1."""
    max_mass: float | None
    """Greatest sum of a position's probabilities."""
    with_candidates: float | None
    """Share of the positions that have candidates."""
    sampled_among: float | None
    """Share of the sampled tokens that are among their candidates."""
    sentinels: int
    """Candidates without a value, taken out by the plugin or not."""
    duplicates: int
    """Candidates that stood twice at a position."""
    repeat_kl: float | None
    """Mean KL in nats between two equal calls; 0: repeatable."""
    scoring: State
    scoring_error: float | None
    """Mean difference in nats between scoring and generation of the same tokens."""
    scoring_words: str
    """Why scoring does not agree; empty where it does or is not offered."""
    latency_s: float
    """Median of a request, in seconds."""
    requests: int
    prompt_tokens: int
    completion_tokens: int
    repairs: Mapping[str, float]
    """What the plugin mended, by its short names, over all answers."""
    version: int = VERDICT_VERSION

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `bitnet_providers.probe.verdict.from_json` reads them."""
        return attrs.asdict(self) | {name: list(getattr(self, name)) for name in ("reasons", "notes")}

    def for_metadata(self) -> dict[str, Any]:
        """What goes into raw shards: the judgement without anything that another probing would measure anew.

        So a shard that is made again after the cached verdict has expired is the same file, byte for byte.
        """
        return {name: value for name, value in self.to_json().items() if name in _JUDGEMENT}


_JUDGEMENT = (
    "version", "trusted_for_kd", "reasons", "max_top_logprobs", "token_bytes", "temperature", "temperature_rule",
    "top_p", "scoring",
)  # fmt: skip


SEQUENCES = (
    "set collect.top_k = 0 for sequence-level traces instead (the sampled tokens, learned by cross-entropy alone)"
)


def wants_probe(config: CollectConfig, capabilities: Capabilities) -> bool:
    """Whether log-probabilities are asked for that could be wrong."""
    return config.top_k > 0 and capabilities.max_top_logprobs > 0


def check_collection(verdict: Verdict, config: CollectConfig) -> None:
    """Raises ProviderError where a collection as configured would gather log-probabilities that can't be trusted."""
    if config.top_k == 0:
        return
    problem = _problem(verdict, config)
    if problem:
        spent = f"nothing but the probe ({verdict.prompt_tokens + verdict.completion_tokens} tokens) was spent"
        why, fix = problem
        raise ProviderError(f"[collect] KD is refused: {why} ({spent}; bitnet probe shows the details)", fix)


def _problem(verdict: Verdict, config: CollectConfig) -> tuple[str, str] | None:
    """Why not, and the fix."""
    who = f'teacher "{verdict.kind}" ({verdict.model})'
    if not verdict.trusted_for_kd:
        return f"the log-probabilities of {who} can't be trusted: {'; '.join(verdict.reasons)}", SEQUENCES
    for setting, value, order in (
        ("temperature", config.temperature, verdict.temperature),
        ("top_p", config.top_p, verdict.top_p),
    ):
        if config.prompts is not None and value != 1.0 and order != "before":
            told = f"are those after {setting}" if order == "after" else f"may be those after {setting}"
            why = f"the log-probabilities of {who} {told}, and collect.{setting} is {value:g}"
            return why, f"set collect.{setting} = 1.0, or {SEQUENCES}"
    if (config.texts is not None or config.test_texts is not None) and verdict.scoring != "agrees":
        why = f"{who} does not score texts as it generates them: {verdict.scoring_words or 'it offers no scoring'}"
        return why, f"take collect.texts out, or {SEQUENCES}"
    return None


MAX_AGE = timedelta(days=7)
"""A hosted model changes behind its name."""

_SECRET = ("key", "token", "secret", "password", "header", "credential")


def verdict_key(kind: str, options: Any, description: Mapping[str, Any]) -> str:
    """sha256 of what the verdict is about: the plugin, its options, and what the teacher says of itself.

    Options whose names sound like secrets are left out, unless they name an environment variable (``..._env``).
    """
    asked = {"version": VERDICT_VERSION, "kind": kind, "options": _plain(options), "teacher": dict(description)}
    text = json.dumps(asked, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def verdict_path(cache: Path, key: str) -> Path:
    return cache / "probes" / f"{key[:32]}.json"


def from_json(value: Any) -> Verdict | None:
    """The verdict that `to_json` wrote; None for anything else, and for other versions."""
    names = {field.name for field in attrs.fields(Verdict)}
    if not isinstance(value, dict) or set(value) != names or value["version"] != VERDICT_VERSION:
        return None
    if not isinstance(value["trusted_for_kd"], bool) or not isinstance(value["probed"], str):
        return None
    try:
        return Verdict(**value | {name: tuple(map(str, value[name])) for name in ("reasons", "notes")})
    except TypeError:
        return None


def read_verdict(path: Path, now: datetime | None = None, *, max_age: timedelta = MAX_AGE) -> Verdict | None:
    """The verdict in `path`, where there is one that is not older than `max_age` (a week)."""
    try:
        verdict = from_json(json.loads(path.read_text(encoding="utf-8")))
        if verdict is None:
            return None
        age = (now or datetime.now(UTC)) - datetime.fromisoformat(verdict.probed)
    except (OSError, ValueError, TypeError):
        return None
    return verdict if timedelta(0) <= age <= max_age else None


def write_verdict(path: Path, verdict: Verdict) -> None:
    """Whole or not at all. Raises OSError."""
    from bitnet_providers.raw.write_shard import atomic_file  # here: `bitnet plan` is quick without Arrow

    with atomic_file(path) as partial:
        partial.write_text(json.dumps(verdict.to_json(), indent=2) + "\n", encoding="utf-8")


def _plain(options: Any) -> dict[str, Any]:
    fields = attrs.fields_dict(type(options)) if attrs.has(type(options)) else {}
    return {
        name: value
        for name, value in (attrs.asdict(options) if fields else {}).items()
        if (name.endswith("_env") or not any(word in name.lower() for word in _SECRET))
        # One that was added later leaves the verdicts of before as they are, while it has its default.
        and not (fields[name].metadata.get("later") and value == fields[name].default)
    }
