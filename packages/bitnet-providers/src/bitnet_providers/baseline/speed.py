"""A teacher's speed out of its timed answers: by whose clock, how fast, and how sure.

A answers; speeds in tokens per second.
"""

import statistics
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

Clock = Literal["server", "in process", "end to end"]

CLOCKS: dict[Clock, str] = {
    "server": "the server's own clock: decoding alone, without reading the prompt, the queue and the network",
    "in process": "from the request to its last token on this machine: reading the prompt included, no network",
    "end to end": "from the request to its last token here: reading the prompt, the queue and the network included",
}


def speed_figures(
    answers: Sequence[dict[str, Any]], *, in_process: bool, samples: int = 1000, level: float = 0.95, seed: int = 0
) -> dict[str, Any]:
    """``tokens_per_second`` and its spread over the answers, with ``clock`` and ``clock_note`` saying what was timed.

    An answer is a record with ``tokens`` (None: the provider doesn't count), ``seconds`` and ``decode_s`` (None: the
    server doesn't tell). The server's clock is taken only where every answer has it. All tokens over all seconds;
    median, least and greatest over single answers; the percentile bootstrap over answers (Efron 1979). Figures that
    can't be had are None.
    """
    counted = [answer for answer in answers if answer["tokens"]]
    clock: Clock = "in process" if in_process else "end to end"
    if counted and all(answer["decode_s"] for answer in counted):
        clock = "server"
    end_to_end = [answer["seconds"] for answer in counted]
    seconds = [answer["decode_s"] for answer in counted] if clock == "server" else end_to_end
    tokens = [answer["tokens"] for answer in counted]
    rates = [count / took for count, took in zip(tokens, seconds, strict=True) if took > 0]
    return {
        "clock": clock,
        "clock_note": CLOCKS[clock],
        "tokens_per_second": _ratio(tokens, seconds),
        "tokens_per_second_median": statistics.median(rates) if rates else None,
        "tokens_per_second_min": min(rates, default=None),
        "tokens_per_second_max": max(rates, default=None),
        "tokens_per_second_interval_95": _bootstrap(tokens, seconds, samples, level, seed),
        "end_to_end_tokens_per_second": _ratio(tokens, end_to_end),
        "tokens": sum(tokens),
        "seconds": sum(seconds),
        "answers_without_token_count": len(answers) - len(counted),
    }


def _ratio(tokens: Sequence[float], seconds: Sequence[float]) -> float | None:
    return sum(tokens) / sum(seconds) if sum(seconds) > 0 else None


def _bootstrap(
    tokens_A: Sequence[float], seconds_A: Sequence[float], samples: int, level: float, seed: int
) -> list[float] | None:
    """[low, high] of Σ tokens / Σ seconds over resampled answers; None for fewer than two answers."""
    count = len(tokens_A)
    if count < 2 or min(seconds_A) <= 0:
        return None
    drawn_SA = np.random.default_rng(seed).integers(0, count, (samples, count))
    ratios_S = np.asarray(tokens_A, float)[drawn_SA].sum(1) / np.asarray(seconds_A, float)[drawn_SA].sum(1)
    low, high = np.quantile(ratios_S, [(1 - level) / 2, (1 + level) / 2])
    return [float(low), float(high)]
